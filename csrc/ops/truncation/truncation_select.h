// Selection among values in memory, and brackets around an order statistic from a sample.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "truncation_math.h"

namespace wsfast::truncation {

template <class A>
struct Bracket {
  A lower, upper;
};

struct Split {
  int64_t below, above;
};

inline constexpr int64_t kFew = 32;     // so many values are ranked by comparing each with all
inline constexpr int64_t kPadding = 16;  // a vector store may run past the last value

// The value of rank `rank` (0 is the smallest) among n values. Overwrites both buffers, which have
// room for n + kPadding values. Quickselect whose pivot is the same quantile of 16 values; rows
// made to defeat it end in std::nth_element after a few rounds.
template <class Passes, class A>
A select(A* values, int64_t n, int64_t rank, A* spare) {
  constexpr int64_t samples = 16;
  for (int rounds = 0; n > kFew && rounds < 40; ++rounds) {
    A sample[samples + kPadding] = {};
    for (int64_t i = 0; i < samples; ++i) sample[i] = values[i * n / samples];
    const double quantile = (static_cast<double>(rank) + 0.5) / static_cast<double>(n);
    const A pivot = Passes::ranked(sample, samples, static_cast<int64_t>(samples * quantile));
    const Split split = Passes::split(values, n, pivot, spare);
    if (rank < split.below) {
      n = split.below;
    } else if (rank >= n - split.above) {
      rank -= n - split.above;
      n = split.above;
      std::swap(values, spare);
    } else {
      return pivot;
    }
  }
  if (n <= kFew) return Passes::ranked(values, n, rank);
  std::nth_element(values, values + rank, values + n);
  return values[rank];
}

inline constexpr int64_t kMostSamples = 16384;

// Buffers of one thread, reused from row to row.
template <class A>
struct Workspace {
  int64_t capacity;
  std::vector<A> sample, inside, spare;

  Workspace(int64_t values_inside, int64_t samples)
      : capacity(values_inside),
        sample(samples + kPadding),
        inside(std::max(values_inside, samples) + kPadding),
        spare(inside.size()) {}
};

// Values among the first `count` of work.sample that enclose the wanted fraction with a margin of
// `sigmas` standard errors. Ends that the sample cannot give are those of `range`.
template <class Passes, class A>
Bracket<A> enclose(Workspace<A>& work, int64_t count, double fraction, double sigmas,
                   Bracket<A> range) {
  const double center = fraction * static_cast<double>(count - 1);
  const double error = std::sqrt(static_cast<double>(count) * fraction * (1.0 - fraction));
  const int64_t low = static_cast<int64_t>(std::floor(center - sigmas * error - 2.0));
  const int64_t high = static_cast<int64_t>(std::ceil(center + sigmas * error + 2.0));
  const auto ranked = [&](int64_t rank) {
    std::copy_n(work.sample.data(), count, work.inside.data());
    return select<Passes>(work.inside.data(), count, rank, work.spare.data());
  };
  if (low > 0) range.lower = std::max(range.lower, ranked(low));
  if (high < count - 1) range.upper = std::min(range.upper, ranked(high));
  return range;
}

}  // namespace wsfast::truncation
