// CUDA kernels of the truncation room for long rows, which many blocks share. No torch: the emulator
// runs this file on the CPU.
#pragma once

#include "truncation_kernels.cuh"

namespace wsfast::truncation {

inline constexpr int64_t kTileLength = 16384;  // values that one block takes of a long row

// The part of a long row that a block takes, of `tiles` parts.
struct Tile {
  int64_t row, begin;  // begin: from the first row's first value on
  int length;

  WS_DEVICE Tile(int64_t n, int64_t tiles) : row(blockIdx.x / tiles) {
    const int64_t first = (blockIdx.x - row * tiles) * kTileLength;
    begin = row * n + first;
    length = static_cast<int>(n - first < kTileLength ? n - first : kTileLength);
  }
};

// Long rows: many blocks count one digit of one row into its global histogram. Count holds the
// number of values of a row: 32 bits halve the memory for all but the longest rows.
template <class T, class Count>
WS_GLOBAL void __launch_bounds__(kThreads)
    count_digits_kernel(const T* grads, int64_t n, int64_t tiles, int level,
                        const Selection<typename RowKey<T>::Key>* selections,
                        Count* histograms) {
  __shared__ uint32_t histogram[kBins];
  const Tile tile(n, tiles);
  clear_bins<kThreads>(histogram);
  __syncthreads();
  const Digits<T> digits(selections[tile.row].prefix, level);
  visit_values<kThreads>(grads + tile.begin, tile.length,
                         [&](int, T x) { digits.count(x, histogram); });
  __syncthreads();
  for (int b = threadIdx.x; b < kBins; b += kThreads) {
    if (histogram[b] != 0) {
      atomic_add(&histograms[tile.row * kBins + b], static_cast<Count>(histogram[b]));
    }
  }
}

// One block per row turns the row's histogram into the next digit and clears it for the next level.
template <class T, class Count>
WS_GLOBAL void __launch_bounds__(kThreads)
    pick_digit_kernel(Count* histograms, int level, double percentile,
                      Selection<typename RowKey<T>::Key>* selections, T* thresholds) {
  __shared__ long long scratch[kThreads / 32];
  Count* histogram = histograms + static_cast<int64_t>(blockIdx.x) * kBins;
  pick_digit<RowKey<T>, kThreads>(histogram, level, percentile, &selections[blockIdx.x], scratch);
  __syncthreads();
  clear_bins<kThreads>(histogram);
  if (level == kLevels<T> - 1 && threadIdx.x == 0) {
    thresholds[blockIdx.x] = from_acc<T>(selected_value<acc_t<T>>(selections[blockIdx.x]));
  }
}

// One block per tile of a long row: truncated = grads where they reach the threshold, else 0
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    keep_kernel(const T* grads, int64_t n, int64_t tiles, const T* thresholds, T* truncated) {
  const Tile tile(n, tiles);
  write_kept<kThreads>(grads + tile.begin, tile.length, to_acc(thresholds[tile.row]),
                       truncated + tile.begin);
}

}  // namespace wsfast::truncation
