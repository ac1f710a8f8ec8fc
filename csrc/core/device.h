// What kernels (*_kernels.cuh) and formulas (*_math.h) may use of CUDA. Torch-free.
//
// The same source is compiled by nvcc, by the CPU emulator of the tests (WSFAST_EMULATOR, see
// tests/native) and by a plain host compiler, which sees WS_HD, the element types and ceil_div.
// Warp and block functions must be called by every thread of a warp or block whose size is a
// multiple of 32; lanes and warps are numbered along the linear thread index.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "device_macros.h"
#include "half.h"

namespace wsfast {

template <class T>
WS_HD constexpr T ceil_div(T value, std::type_identity_t<T> divisor) {
  return (value + divisor - 1) / divisor;
}

}  // namespace wsfast

#if WS_DEVICE_CODE

// WS_LAUNCH(kernel, grid, block, shared_bytes, stream, args...); a kernel whose template arguments
// hold a comma is named by a variable first.
// WS_DYNAMIC_SHARED(type, name): a pointer to the launch's dynamic shared memory, 16-byte aligned.
#ifdef WSFAST_EMULATOR
#define WS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                            \
  ::wsfast::emulator::launch(kernel, grid, block, static_cast<size_t>(shared_bytes) __VA_OPT__(, ) \
                                 __VA_ARGS__)
#define WS_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::wsfast::emulator::dynamic_shared())
#else
#define WS_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  kernel<<<(grid), (block), static_cast<size_t>(shared_bytes), (stream)>>>(__VA_ARGS__)
#define WS_DYNAMIC_SHARED(type, name)                                      \
  extern __shared__ __align__(16) unsigned char ws_dynamic_shared_bytes[]; \
  type* const name = reinterpret_cast<type*>(ws_dynamic_shared_bytes)
#endif

namespace wsfast {

// Lets blocks of the kernel have as much dynamic shared memory: more than 48 KB must be asked for.
// What fails is reported where the launch is checked.
template <class Kernel>
void allow_dynamic_shared([[maybe_unused]] Kernel* kernel, [[maybe_unused]] int64_t bytes) {
#ifndef WSFAST_EMULATOR
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                       static_cast<int>(bytes));
#endif
}

inline constexpr int64_t kMostBlocks = int64_t{1} << 20;  // kernels loop where that is not enough

// Blocks of `block` threads along x, as many as so many threads need.
inline dim3 grid_of(int64_t threads, int block, int64_t most = kMostBlocks) {
  return dim3(static_cast<unsigned>(std::clamp<int64_t>(ceil_div(threads, block), 1, most)));
}

inline constexpr int kWarpSize = 32;
inline constexpr unsigned kFullWarp = 0xffffffffu;

// ---- thread numbers -----------------------------------------------------------------------------

// Numbers along x, for grid-stride loops that stay right beyond 2^31 elements.
WS_DEVICE inline int64_t global_thread_id() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
WS_DEVICE inline int64_t global_thread_count() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

WS_DEVICE inline int block_thread() {
  return static_cast<int>((threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x);
}
WS_DEVICE inline int block_threads() {
  return static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
}
WS_DEVICE inline int warp_lane() { return block_thread() % kWarpSize; }
WS_DEVICE inline int block_warp() { return block_thread() / kWarpSize; }

// Without arithmetic: nvcc may contract a product before it and a subtraction to its rounding error.
template <class T>
WS_DEVICE bool is_finite(T value) {
  constexpr T largest = std::numeric_limits<T>::max();
  return value >= -largest && value <= largest;
}

// ---- warps --------------------------------------------------------------------------------------

template <class T>
WS_DEVICE T warp_shfl(T value, int lane) {
  return __shfl_sync(kFullWarp, value, lane);
}
// The value of the lane `delta` below; the first lanes keep their own.
template <class T>
WS_DEVICE T warp_shfl_up(T value, unsigned delta) {
  return __shfl_up_sync(kFullWarp, value, delta);
}
// The value of the lane `delta` above; the last lanes keep their own.
template <class T>
WS_DEVICE T warp_shfl_down(T value, unsigned delta) {
  return __shfl_down_sync(kFullWarp, value, delta);
}
template <class T>
WS_DEVICE T warp_shfl_xor(T value, int mask) {
  return __shfl_xor_sync(kFullWarp, value, mask);
}
// Bit i is lane i's predicate.
WS_DEVICE inline unsigned warp_ballot(bool predicate) {
  return __ballot_sync(kFullWarp, predicate);
}

// ---- reductions ---------------------------------------------------------------------------------
// Fixed trees: the same values give the same bits every time, and every thread gets the result.
// NaN wins over numbers in min and max, as in torch.

struct Sum {
  template <class T>
  WS_DEVICE T operator()(T a, T b) const {
    return a + b;
  }
};
struct Min {
  template <class T>
  WS_DEVICE T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a != a) return a;
    }
    return a <= b ? a : b;
  }
};
struct Max {
  template <class T>
  WS_DEVICE T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) {
      if (a != a) return a;
    }
    return a >= b ? a : b;
  }
};

template <class T, class Combine>
WS_DEVICE T warp_reduce(T value, Combine combine) {
  for (int mask = kWarpSize / 2; mask > 0; mask /= 2) {
    value = combine(value, warp_shfl_xor(value, mask));
  }
  return value;
}
template <class T>
WS_DEVICE T warp_sum(T value) {
  return warp_reduce(value, Sum());
}
template <class T>
WS_DEVICE T warp_min(T value) {
  return warp_reduce(value, Min());
}
template <class T>
WS_DEVICE T warp_max(T value) {
  return warp_reduce(value, Max());
}

// `scratch` is shared memory for one value per warp; it may be used again at once.
template <class T, class Combine>
WS_DEVICE T block_reduce(T value, T* scratch, Combine combine) {
  value = warp_reduce(value, combine);
  __syncthreads();  // a previous reduction may still be reading scratch
  if (warp_lane() == 0) scratch[block_warp()] = value;
  __syncthreads();
  T total = scratch[0];
  for (int warp = 1; warp < block_threads() / kWarpSize; ++warp) {
    total = combine(total, scratch[warp]);
  }
  return total;
}
template <class T>
WS_DEVICE T block_sum(T value, T* scratch) {
  return block_reduce(value, scratch, Sum());
}
template <class T>
WS_DEVICE T block_min(T value, T* scratch) {
  return block_reduce(value, scratch, Min());
}
template <class T>
WS_DEVICE T block_max(T value, T* scratch) {
  return block_reduce(value, scratch, Max());
}

// ---- atomics ------------------------------------------------------------------------------------
// All return the value before. Sums of float and double depend on the order of arrival.

// CUDA's own name for an integer of T's size and sign (int64_t is `long`, which it does not know).
template <class T, bool Signed = std::is_signed_v<T>>
using atomic_integer_t = std::conditional_t<
    sizeof(T) == 4, std::conditional_t<Signed, int, unsigned>,
    std::conditional_t<Signed, long long, unsigned long long>>;

template <class T>
WS_DEVICE T atomic_add(T* address, std::type_identity_t<T> value) {
  if constexpr (std::is_floating_point_v<T>) {
    return atomicAdd(address, value);
  } else {  // two's complement: the unsigned sum has the signed sum's bits
    using Word = atomic_integer_t<T, false>;
    return static_cast<T>(
        atomicAdd(reinterpret_cast<Word*>(address), static_cast<Word>(value)));
  }
}

template <class T>
WS_DEVICE T atomic_min(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  using Word = atomic_integer_t<T>;
  return static_cast<T>(atomicMin(reinterpret_cast<Word*>(address), static_cast<Word>(value)));
}

template <class T>
WS_DEVICE T atomic_max(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  using Word = atomic_integer_t<T>;
  return static_cast<T>(atomicMax(reinterpret_cast<Word*>(address), static_cast<Word>(value)));
}

template <class T>
WS_DEVICE T atomic_or(T* address, std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  using Word = atomic_integer_t<T, false>;
  return static_cast<T>(atomicOr(reinterpret_cast<Word*>(address), static_cast<Word>(value)));
}

// Stores `value` where *address equals `expected`.
template <class T>
WS_DEVICE T atomic_cas(T* address, std::type_identity_t<T> expected,
                       std::type_identity_t<T> value) {
  static_assert(std::is_integral_v<T>);
  using Word = atomic_integer_t<T, false>;
  return static_cast<T>(atomicCAS(reinterpret_cast<Word*>(address), static_cast<Word>(expected),
                                  static_cast<Word>(value)));
}

}  // namespace wsfast

#endif  // WS_DEVICE_CODE
