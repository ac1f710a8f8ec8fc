// Small kernels that test the emulator itself: correct ones, and ones with a planted bug.
#pragma once

#include "../../csrc/core/device.h"

namespace wsfast::toy {

// ---- correct ------------------------------------------------------------------------------------

template <class T>
WS_GLOBAL void summary_kernel(const T* x, int64_t n, T* sums, T* minima, T* maxima) {
  __shared__ T scratch[32];
  const int64_t i = global_thread_id();
  const T value = i < n ? x[i] : T(0);
  const T sum = block_sum(value, scratch);
  const T smallest = block_min(value, scratch);
  const T largest = block_max(value, scratch);
  // Any thread may write: all hold the result.
  if (block_thread() == block_threads() - 1) {
    sums[blockIdx.x] = sum;
    minima[blockIdx.x] = smallest;
    maxima[blockIdx.x] = largest;
  }
}

enum ShuffleRow { kFromLane, kUp, kDown, kXor, kBallot, kShuffleRows };

WS_GLOBAL void shuffle_kernel(const int* x, int lane, unsigned delta, int* out) {
  const int i = block_thread(), n = block_threads();
  const int value = x[i];
  out[kFromLane * n + i] = warp_shfl(value, lane);
  out[kUp * n + i] = warp_shfl_up(value, delta);
  out[kDown * n + i] = warp_shfl_down(value, delta);
  out[kXor * n + i] = warp_shfl_xor(value, lane);
  out[kBallot * n + i] = static_cast<int>(warp_ballot(value > 0));
}

// Transposes through dynamic shared memory, one block of blockDim.x * blockDim.y per tile.
template <class T>
WS_GLOBAL void transpose_kernel(const T* x, int rows, int columns, T* out) {
  WS_DYNAMIC_SHARED(T, tile);
  const int column = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int row = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.y);
  const size_t mine = threadIdx.y * blockDim.x + threadIdx.x;
  if (row < rows && column < columns) tile[mine] = x[row * columns + column];
  __syncthreads();
  const int out_column = static_cast<int>(blockIdx.y * blockDim.y + threadIdx.x);
  const int out_row = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.y);
  if (out_row < columns && out_column < rows) {
    out[out_row * rows + out_column] = tile[threadIdx.x * blockDim.x + threadIdx.y];
  }
}

// Every thread puts its number, counted from `first`, through each atomic function.
template <class T>
WS_GLOBAL void atomics_kernel(int64_t first, T* sum, T* smallest, T* largest, T* bits, T* tickets) {
  const T number = static_cast<T>(first + global_thread_id());
  atomic_add(sum, number);
  atomic_min(smallest, number);
  atomic_max(largest, number);
  atomic_or(bits, number);
  T seen = 0, expected;  // a counter by compare and swap
  do {
    expected = seen;
    seen = atomic_cas(tickets, expected, expected + 1);
  } while (seen != expected);
}

template <class T>
WS_GLOBAL void float_sum_kernel(const T* x, int64_t n, T* sum) {
  for (int64_t i = global_thread_id(); i < n; i += global_thread_count()) atomic_add(sum, x[i]);
}

// One thread at a time holds the lock, whatever the order.
WS_GLOBAL void lock_kernel(int* lock, int64_t* total) {
  while (atomic_cas(lock, 0, 1) != 0) {
  }
  *total += global_thread_id();
  atomic_add(lock, -1);
}

// ---- planted bugs -------------------------------------------------------------------------------

// Misses the test of i against n.
WS_GLOBAL void read_past_end_kernel(const float* x, int64_t, float* out) {
  out[global_thread_id()] = x[global_thread_id()];
}

// Writes one element past its dynamic shared memory.
WS_GLOBAL void shared_past_end_kernel(float* out) {
  WS_DYNAMIC_SHARED(float, cache);
  cache[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = cache[threadIdx.x];
}

// Writes past its static shared memory in the last thread.
WS_GLOBAL void static_past_end_kernel(int threads, float* out) {
  __shared__ float cache[32];
  for (int i = static_cast<int>(threadIdx.x); i <= threads; i += 32) cache[i] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = cache[threadIdx.x];
}

// Reads dynamic shared memory that nobody wrote.
WS_GLOBAL void unwritten_shared_kernel(float* out) {
  WS_DYNAMIC_SHARED(float, cache);
  out[threadIdx.x] = cache[threadIdx.x];
}

enum Divergence { kExitBefore, kHalfSkips, kTwoPlaces, kPartialWarp, kMixedWarp, kSpin, kNone };

// The threads of one block part ways before a barrier or a warp function.
WS_GLOBAL void divergent_kernel(Divergence how, int* out) {
  const int i = block_thread(), half = block_threads() / 2;
  if (how == kExitBefore && i >= half) return;
  if (how == kHalfSkips) {
    if (i < half) __syncthreads();
  } else if (how == kTwoPlaces) {
    if (i < half) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if (how == kPartialWarp) {
    if (i % 32 < 5) out[i] = warp_shfl(i, 0);
  } else if (how == kMixedWarp) {
    if (i % 32 < 5) {
      out[i] = warp_shfl(i, 0);
    } else {
      out[i] = warp_shfl_up(i, 1);
    }
  } else if (how == kSpin) {
    while (atomic_cas(out, 1, 2) != 1) {
    }
  }
  __syncthreads();
  out[i] = i;
}

// int32 arithmetic where 64 bits are needed.
WS_GLOBAL void overflow_kernel(int rows, int columns, int64_t* out) {
  const int index = rows * columns;
  out[threadIdx.x] = index;
}

// Reads a neighbour's cell without a barrier after the write.
WS_GLOBAL void race_kernel(const int* x, int* out) {
  __shared__ int cells[256];
  const int i = block_thread(), n = block_threads();
  cells[i] = x[i];
  out[i] = cells[(i + 1) % n];
}

// Counts on blocks running in the order of their numbers.
WS_GLOBAL void block_race_kernel(int* last) { *last = static_cast<int>(blockIdx.x); }

}  // namespace wsfast::toy
