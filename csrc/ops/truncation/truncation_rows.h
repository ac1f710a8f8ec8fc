// Exact selection of a row's threshold on the CPU: a bracket from a small sample, one counting pass
// that copies only what falls inside the bracket, and a selection among those few.
//
// The row is read once from memory for nearly every input; a missed or crowded bracket costs
// another pass, and every pass strictly narrows the range, so ties and adversarial rows end too.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "truncation_math.h"

namespace wsfast::truncation {

// What one counting pass over a row reports; see Passes::collect in truncation_simd.h.
struct Collected {
  int64_t positives, below, inside, written;
};

template <class A>
struct Bracket {
  A lower, upper;
};

inline constexpr int64_t kSmallRow = 2048;         // shorter rows are copied whole
inline constexpr int64_t kChunk = int64_t{1} << 17;  // a unit of work within a long row
inline constexpr int64_t kChunkCapacity = kChunk / 26;

// Room for the values inside the bracket; reused from row to row by one thread.
template <class A>
struct Workspace {
  std::vector<A> inside, spare;
  int64_t capacity;

  explicit Workspace(int64_t row_length)
      : capacity(row_length <= kSmallRow ? row_length
                 : row_length <= kChunk  ? std::max(kSmallRow, row_length / 4)
                                         : (row_length / kChunk + 1) * kChunkCapacity) {
    inside.resize(capacity + 16);  // a vector store may run past the last value
    spare.resize(capacity + 16);
  }
};

// Values of `sample` that enclose the wanted fraction with a margin of `sigmas` standard errors.
// Reorders the sample. Ends that the sample cannot give are those of `range`.
template <class A>
Bracket<A> enclose(A* sample, int64_t count, double fraction, double sigmas, Bracket<A> range) {
  const double center = fraction * static_cast<double>(count - 1);
  const double error = std::sqrt(static_cast<double>(count) * fraction * (1.0 - fraction));
  const int64_t low = static_cast<int64_t>(std::floor(center - sigmas * error - 2.0));
  const int64_t high = static_cast<int64_t>(std::ceil(center + sigmas * error + 2.0));
  A* first = sample;
  if (low > 0) {
    std::nth_element(sample, sample + low, sample + count);
    range.lower = std::max(range.lower, sample[low]);
    first = sample + low;
  }
  if (high < count - 1) {
    std::nth_element(first, sample + high, sample + count);
    range.upper = std::min(range.upper, sample[high]);
  }
  return range;
}

// The value of rank `rank` among n values in memory. Overwrites both buffers.
template <class Passes, class A>
A select_in_memory(A* values, int64_t n, int64_t rank, A* spare) {
  constexpr int64_t samples = 64;
  while (n > 3 * samples) {
    A sample[samples];
    for (int64_t i = 0; i < samples; ++i) sample[i] = values[i * n / samples];
    const double fraction = (static_cast<double>(rank) + 0.5) / static_cast<double>(n);
    const Bracket<A> bracket =
        enclose(sample, samples, fraction, 2.5, {smallest_positive<A>(), infinity<A>()});
    const Collected c = Passes::collect(values, n, bracket.lower, bracket.upper, spare, n);
    const bool missed = rank < c.below || rank >= c.below + c.inside;
    if (missed || c.inside == n) break;
    if (bracket.lower == bracket.upper) return bracket.lower;
    rank -= c.below;
    n = c.inside;
    std::swap(values, spare);
  }
  std::nth_element(values, values + rank, values + n);
  return values[rank];
}

// Runs chunk(index, begin, end) over the row's chunks, on all threads when `parallel`.
template <class Chunk>
void for_chunks(int64_t n, bool parallel, const Chunk& chunk) {
  const int64_t chunks = (n + kChunk - 1) / kChunk;
  const auto run = [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; ++k) chunk(k, k * kChunk, std::min(n, (k + 1) * kChunk));
  };
  if (parallel) {
    parallel_for(0, chunks, 1, run);
  } else {
    run(0, chunks);
  }
}

template <class Passes, class T, class A>
Collected collect_row(const T* row, int64_t n, Bracket<A> bracket, Workspace<A>& work,
                      bool parallel) {
  A* inside = work.inside.data();
  if (n <= kChunk) {
    return Passes::collect(row, n, bracket.lower, bracket.upper, inside, work.capacity);
  }
  std::vector<Collected> parts((n + kChunk - 1) / kChunk);
  for_chunks(n, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    parts[k] = Passes::collect(row + begin, end - begin, bracket.lower, bracket.upper,
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

// A first bracket from short segments spread over the row.
template <class T, class A>
Bracket<A> guess_bracket(const T* row, int64_t n, double percentile, Bracket<A> range) {
  constexpr int64_t segment = 16, most_segments = 1024;
  const int64_t segments = std::clamp<int64_t>(n / 512, 32, most_segments);
  A sample[segment * most_segments];
  int64_t count = 0;
  for (int64_t s = 0; s < segments; ++s) {
    const T* from = row + s * (n - segment) / segments;
    for (int64_t i = 0; i < segment; ++i) {
      const A x = to_acc(from[i]);
      sample[count] = x;
      count += x > A(0);
    }
  }
  if (count < 32) return range;
  return enclose(sample, count, percentile / 100.0, 4.0, range);
}

// A tighter bracket inside a crowded one, from the values copied so far.
template <class A>
Bracket<A> narrow_bracket(Bracket<A> range, A* sample, int64_t count, double fraction) {
  const Bracket<A> tighter = enclose(sample, count, fraction, 4.0, range);
  if (tighter.lower > range.lower || tighter.upper < range.upper) return tighter;
  std::nth_element(sample, sample + count / 2, sample + count);
  return {sample[count / 2], sample[count / 2]};
}

// The smallest kept value of the row: the order statistic of rank ceil(q/100 (m-1)) among its m
// positives; +inf where nothing is positive.
template <class Passes, class T, class A = acc_t<T>>
A row_threshold(const T* row, int64_t n, double percentile, Workspace<A>& work, bool parallel) {
  Bracket<A> range{smallest_positive<A>(), infinity<A>()};
  Bracket<A> bracket = n > kSmallRow ? guess_bracket(row, n, percentile, range) : range;
  for (;;) {
    const Collected c = collect_row<Passes>(row, n, bracket, work, parallel);
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
      return select_in_memory<Passes>(work.inside.data(), c.inside, rank - c.below,
                                      work.spare.data());
    } else {
      range = bracket;
      const double fraction =
          (static_cast<double>(rank - c.below) + 0.5) / static_cast<double>(c.inside);
      bracket = narrow_bracket(range, work.inside.data(), c.written, fraction);
    }
  }
}

// The linearly interpolated percentile itself: the kept order statistic and the one below it.
template <class Passes, class T, class A = acc_t<T>>
A row_percentile(const T* row, int64_t n, double percentile, Workspace<A>& work, bool parallel) {
  const A upper = row_threshold<Passes>(row, n, percentile, work, parallel);
  std::vector<int64_t> positives((n + kChunk - 1) / kChunk), below(positives.size());
  std::vector<A> largest_below(positives.size());
  for_chunks(n, parallel, [&](int64_t k, int64_t begin, int64_t end) {
    int64_t count = 0, smaller = 0;
    A largest = A(0);
    for (int64_t i = begin; i < end; ++i) {
      const A x = to_acc(row[i]);
      const bool positive = x > A(0), under = positive && x < upper;
      count += positive;
      smaller += under;
      largest = under && x > largest ? x : largest;
    }
    positives[k] = count;
    below[k] = smaller;
    largest_below[k] = largest;
  });
  int64_t count = 0, smaller = 0;
  for (size_t k = 0; k < positives.size(); ++k) {
    count += positives[k];
    smaller += below[k];
  }
  if (count == 0) return infinity<A>();
  const Rank rank = percentile_rank(percentile, count);
  const bool tied = rank.lower >= smaller;  // the lower neighbour has the same value
  const A lower = tied ? upper : *std::max_element(largest_below.begin(), largest_below.end());
  return interpolate(lower, upper, rank.fraction);
}

}  // namespace wsfast::truncation
