// Exact selection of a row's threshold on the CPU: a bracket from a small sample, one counting pass
// that copies only what falls inside the bracket, and a selection among those few.
//
// The row is read once from memory for nearly every input; a missed or crowded bracket costs
// another pass, and every pass strictly narrows the range, so ties and adversarial rows end too.
// So do threads that flush subnormals: these are 0 to them, not positive, and end no bracket.
#pragma once

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <vector>

#include "truncation_select.h"

namespace wsfast::truncation {

// What one counting pass over a row reports; see Passes::collect in truncation_simd.h.
struct Collected {
  int64_t positives, below, inside, written;
};

// The positives of a row, those below a limit, and the largest of these.
template <class A>
struct Below {
  int64_t positives, smaller;
  A largest;
};

inline constexpr int64_t kSmallRow = 8192;           // shorter rows are copied whole
inline constexpr int64_t kChunk = int64_t{1} << 17;  // a unit of work within a long row
inline constexpr int64_t kChunkCapacity = kChunk / 26;

// How many values of a row of length n may fall inside the first bracket.
inline int64_t inside_capacity(int64_t n) {
  if (n <= kSmallRow) return n;
  return n <= kChunk ? std::max(kSmallRow, n / 4) : (n / kChunk + 1) * kChunkCapacity;
}

// Buffers for rows of length n; short ones are never sampled.
template <class A>
Workspace<A> workspace_for(int64_t n) {
  return Workspace<A>(inside_capacity(n), n > kSmallRow ? kMostSamples : 0);
}

// Runs chunk(index, begin, end) over the row's chunks, on all threads when `parallel`, and these in
// the caller's floating-point mode: whether a subnormal is positive must not depend on the thread.
template <class Chunk>
void for_chunks(int64_t n, bool parallel, const Chunk& chunk) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) chunk(k, k * kChunk, std::min(n, (k + 1) * kChunk));
  };
  if (parallel) {
    std::fenv_t callers;
    std::fegetenv(&callers);
    parallel_for(0, chunks, 1, [&](int64_t first, int64_t last) {
      std::fenv_t own;
      std::fegetenv(&own);
      std::fesetenv(&callers);
      run(first, last);
      std::fesetenv(&own);
    });
  } else {
    run(0, chunks);
  }
}

// The sample of a row: `count` segments, `stride` apart. Both lie on whole cache lines, and the odd
// number of lines between them keeps clear of the widths that maps have.
inline constexpr int64_t kSegment = 16;

struct SamplePlan {
  int64_t count, stride;
};

inline SamplePlan sample_plan(int64_t n) {
  if (n <= kSmallRow) return {0, n};
  const int64_t count = std::clamp<int64_t>(n / 512, 32, kMostSamples / kSegment);
  return {count, ((n / count / kSegment - 1) | 1) * kSegment};
}

template <class Passes, class T, class A>
Collected collect_row(const T* row, int64_t n, Bracket<A> bracket, Workspace<A>& work,
                      bool parallel) {
  A* inside = work.inside.data();
  const int64_t stride = sample_plan(n).stride;
  if (n <= kChunk) {
    return Passes::collect(row, n, stride, bracket.lower, bracket.upper, inside, work.capacity);
  }
  std::vector<Collected> parts((n + kChunk - 1) / kChunk);
  for_chunks(n, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    parts[k] = Passes::collect(row + begin, end - begin, stride, bracket.lower, bracket.upper,
                               inside + k * kChunkCapacity, kChunkCapacity);
  });
  Collected all{0, 0, 0, 0};
  for (size_t k = 0; k < parts.size(); ++k) {
    const A* part = inside + k * kChunkCapacity;
    std::copy(part, part + parts[k].written, inside + all.written);
    all.positives += parts[k].positives;
    all.below += parts[k].below;
    all.inside += parts[k].inside;
    all.written += parts[k].written;
  }
  return all;
}

// A first bracket from the positives of those segments.
template <class Passes, class T, class A>
Bracket<A> guess_bracket(const T* row, int64_t n, double percentile, Bracket<A> range,
                         Workspace<A>& work) {
  const SamplePlan plan = sample_plan(n);
  A* sample = work.sample.data();
  int64_t count = 0;
  for (int64_t s = 0; s < plan.count; ++s) {
    count += Passes::positives(row + s * plan.stride, kSegment, sample + count);
  }
  if (count < 32) return range;
  return enclose<Passes>(work, count, percentile / 100.0, 4.0, range);
}

// A tighter bracket inside a crowded one, from some of the values copied so far.
template <class Passes, class A>
Bracket<A> narrow_bracket(Bracket<A> range, Workspace<A>& work, int64_t written, double fraction) {
  const int64_t count = std::min(written, kMostSamples);
  for (int64_t i = 0; i < count; ++i) work.sample[i] = work.inside[i * written / count];
  const Bracket<A> tighter = enclose<Passes>(work, count, fraction, 4.0, range);
  if (tighter.lower > range.lower || tighter.upper < range.upper) return tighter;
  const A middle = select<Passes>(work.sample.data(), count, count / 2, work.spare.data());
  return {middle, middle};
}

// The bracket to look into first.
template <class Passes, class T, class A>
Bracket<A> first_bracket(const T* row, int64_t n, double percentile, Workspace<A>& work) {
  const Bracket<A> all{smallest_positive<A>(), infinity<A>()};
  return n > kSmallRow ? guess_bracket<Passes>(row, n, percentile, all, work) : all;
}

// The smallest kept value of a row whose first bracket has been collected: the order statistic of
// rank ceil(q/100 (m-1)) among its m positives; +inf where nothing is positive.
template <class Passes, class T, class A>
A threshold_from(Bracket<A> bracket, Collected c, const T* row, int64_t n, double percentile,
                 Workspace<A>& work, bool parallel) {
  Bracket<A> range{smallest_positive<A>(), infinity<A>()};
  for (;;) {
    if (c.positives == 0) return infinity<A>();
    const int64_t rank = percentile_rank(percentile, c.positives).upper;
    if (rank < c.below) {
      range.upper = std::nextafter(bracket.lower, A(0));
      bracket = range;
    } else if (rank >= c.below + c.inside) {
      range.lower = std::nextafter(bracket.upper, infinity<A>());
      bracket = range;
    } else if (bracket.lower == bracket.upper) {
      return bracket.lower;
    } else if (c.written == c.inside) {
      return select<Passes>(work.inside.data(), c.inside, rank - c.below, work.spare.data());
    } else {
      range = bracket;
      const double fraction =
          (static_cast<double>(rank - c.below) + 0.5) / static_cast<double>(c.inside);
      bracket = narrow_bracket<Passes>(range, work, c.written, fraction);
    }
    c = collect_row<Passes>(row, n, bracket, work, parallel);
  }
}

// The threshold of percentile 0, which a ReLU has, too.
template <class Passes, class T, class A = acc_t<T>>
A lowest_positive(const T* row, int64_t n, bool parallel) {
  if (n <= kChunk) return Passes::lowest_positive(row, n);
  std::vector<A> parts((n + kChunk - 1) / kChunk);
  for_chunks(n, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    parts[k] = Passes::lowest_positive(row + begin, end - begin);
  });
  return *std::min_element(parts.begin(), parts.end());
}

template <class Passes, class T, class A = acc_t<T>>
A row_threshold(const T* row, int64_t n, double percentile, Workspace<A>& work, bool parallel) {
  if (percentile == 0.0) return lowest_positive<Passes>(row, n, parallel);
  const Bracket<A> bracket = first_bracket<Passes>(row, n, percentile, work);
  const Collected c = collect_row<Passes>(row, n, bracket, work, parallel);
  return threshold_from<Passes>(bracket, c, row, n, percentile, work, parallel);
}

// The linearly interpolated percentile itself: the kept order statistic and the one below it.
template <class Passes, class T, class A = acc_t<T>>
T row_percentile(const T* row, int64_t n, double percentile, Workspace<A>& work, bool parallel) {
  const A upper = row_threshold<Passes>(row, n, percentile, work, parallel);
  std::vector<Below<A>> parts((n + kChunk - 1) / kChunk);
  for_chunks(n, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    parts[k] = Passes::below(row + begin, end - begin, upper);
  });
  Below<A> all{0, 0, A(0)};
  for (const Below<A>& part : parts) {
    all.positives += part.positives;
    all.smaller += part.smaller;
    all.largest = std::max(all.largest, part.largest);
  }
  if (all.positives == 0) return from_acc<T>(infinity<A>());
  const Rank rank = percentile_rank(percentile, all.positives);
  const bool tied = rank.lower >= all.smaller;  // the lower neighbour has the same value
  return interpolate<T>(tied ? upper : all.largest, upper, rank.fraction);
}

}  // namespace wsfast::truncation
