// CUDA kernels of the truncation room's interpolated percentiles. No torch: the emulator runs this file
// on the CPU.
#pragma once

#include "truncation_tile_kernels.cuh"

namespace wsfast::truncation {

// What interpolation needs to know of a row besides the kept order statistic: how many values are
// positive, how many of them lie below it, and the key of the largest of these.
template <class Key>
struct Below {
  unsigned long long positives, smaller;
  Key largest;
};

// Below of n values, seen by a block; every thread gets the result.
template <class T>
WS_DEVICE Below<typename RowKey<T>::Key> look_below(const T* values, int n, acc_t<T> upper) {
  using A = acc_t<T>;
  using Key = typename RowKey<T>::Key;
  __shared__ int counts[kThreads / kWarpSize];
  __shared__ A maxima[kThreads / kWarpSize];
  int positives = 0, smaller = 0;
  A largest = 0;
  visit_values<kThreads>(values, n, [&](int, T value) {
    const A x = to_acc(value);
    const bool positive = x > A(0), under = positive && x < upper;
    positives += positive;
    smaller += under;
    largest = under && x > largest ? x : largest;
  });
  positives = block_sum(positives, counts);
  smaller = block_sum(smaller, counts);
  largest = block_max(largest, maxima);
  return {static_cast<unsigned long long>(positives), static_cast<unsigned long long>(smaller),
          same_bits<Key>(largest)};
}

template <class T>
WS_DEVICE T interpolated(const Below<typename RowKey<T>::Key>& below, acc_t<T> upper,
                         double percentile) {
  using A = acc_t<T>;
  if (below.positives == 0) return from_acc<T>(infinity<A>());
  const Rank rank = percentile_rank(percentile, static_cast<int64_t>(below.positives));
  const bool tied = rank.lower >= static_cast<int64_t>(below.smaller);
  return interpolate<T>(tied ? upper : same_bits<A>(below.largest), upper, rank.fraction);
}

// One block per row: the interpolated percentile from the kept order statistic and the one below.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    interpolate_kernel(const T* grads, int64_t n, double percentile, const T* thresholds, T* out) {
  const acc_t<T> upper = to_acc(thresholds[blockIdx.x]);
  const auto below = look_below(grads + blockIdx.x * n, static_cast<int>(n), upper);
  if (threadIdx.x == 0) out[blockIdx.x] = interpolated<T>(below, upper, percentile);
}

// Long rows: one block per tile adds what it sees to what is known of its row.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    look_below_kernel(const T* grads, int64_t n, int64_t tiles, const T* thresholds,
                      Below<typename RowKey<T>::Key>* rows) {
  const Tile tile(n, tiles);
  const auto seen = look_below(grads + tile.begin, tile.length, to_acc(thresholds[tile.row]));
  if (threadIdx.x == 0) {
    atomic_add(&rows[tile.row].positives, seen.positives);
    atomic_add(&rows[tile.row].smaller, seen.smaller);
    atomic_max(&rows[tile.row].largest, seen.largest);
  }
}

// One thread per long row.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    interpolate_long_kernel(const Below<typename RowKey<T>::Key>* rows, int64_t count,
                            double percentile, const T* thresholds, T* out) {
  const int64_t row = global_thread_id();
  if (row < count) out[row] = interpolated<T>(rows[row], to_acc(thresholds[row]), percentile);
}

}  // namespace wsfast::truncation
