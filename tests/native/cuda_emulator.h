// CUDA kernels on the CPU, for tests: one fiber per CUDA thread, one block after the other.
//
// device_macros.h includes this file under WSFAST_EMULATOR. What it finds, together with ASan and
// UBSan: wrong indices, tails, uninitialised shared memory, overflow, barriers and warp functions
// that part of the threads miss, results that depend on the order of threads or blocks. What it
// cannot find: memory-order bugs, and races that no order of whole steps between two
// synchronisation points shows. Static __shared__ memory keeps the last block's values: only another
// order of the blocks shows that a kernel reads it too early.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "emulator_scheduler.h"

#define __host__
#define __device__
#define __global__ inline
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static  // blocks run one at a time

namespace wsfast::emulator {

// Runs kernel(args...) for every thread of the grid; throws std::runtime_error where the launch or
// the kernel is wrong.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), Dim3 grid, Dim3 block, size_t shared_bytes,
            const Arguments&... arguments) {
  Scheduler::instance().run(grid, block, shared_bytes, [&] { kernel(arguments...); });
}

inline void* dynamic_shared() { return Scheduler::instance().dynamic_shared(); }

// Every lane shows its value and reads those of its warp.
template <class T, class Read>
auto warp_exchange(unsigned mask, T value, const char* name, const std::source_location& where,
                   Read read) {
  static_assert(sizeof(T) <= kExchangeBytes && std::is_trivially_copyable_v<T>);
  if (mask != 0xffffffffu) {
    throw std::runtime_error(describe(name, where) + ": the mask must name the whole warp");
  }
  Scheduler& scheduler = Scheduler::instance();
  const int slot = scheduler.show(&value, sizeof(T));
  scheduler.wait(State::at_warp, name, where);
  const int lane = scheduler.current_thread() % kLanes;
  return read(lane, [&](int source) {
    T shown;
    std::memcpy(&shown, scheduler.shown(scheduler.current_thread() - lane + source, slot),
                sizeof(T));
    return shown;
  });
}

template <class T, class Source>
T shuffle(unsigned mask, T value, const char* name, const std::source_location& where,
          Source source) {
  return warp_exchange(mask, value, name, where,
                       [&](int lane, const auto& shown_by) { return shown_by(source(lane)); });
}

}  // namespace wsfast::emulator

// ---- CUDA's names -------------------------------------------------------------------------------

using dim3 = wsfast::emulator::Dim3;
using cudaStream_t = void*;
#define threadIdx (::wsfast::emulator::Scheduler::instance().thread_index())
#define blockIdx (::wsfast::emulator::Scheduler::instance().block_index())
#define blockDim (::wsfast::emulator::Scheduler::instance().block_size())
#define gridDim (::wsfast::emulator::Scheduler::instance().grid_size())
using WsLocation = std::source_location;

inline void __syncthreads(WsLocation where = WsLocation::current()) {
  using namespace wsfast::emulator;
  Scheduler::instance().wait(State::at_barrier, "__syncthreads", where);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, WsLocation where = WsLocation::current()) {
  wsfast::emulator::warp_exchange(mask, 0, "__syncwarp", where, [](int, const auto&) { return 0; });
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, WsLocation where = WsLocation::current()) {
  return wsfast::emulator::shuffle(mask, value, "__shfl_sync", where,
                                   [=](int) { return source & 31; });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, WsLocation where = WsLocation::current()) {
  return wsfast::emulator::shuffle(mask, value, "__shfl_up_sync", where, [=](int lane) {
    return static_cast<unsigned>(lane) < delta ? lane : lane - static_cast<int>(delta);
  });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta,
                   WsLocation where = WsLocation::current()) {
  return wsfast::emulator::shuffle(mask, value, "__shfl_down_sync", where, [=](int lane) {
    return delta > static_cast<unsigned>(31 - lane) ? lane : lane + static_cast<int>(delta);
  });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, WsLocation where = WsLocation::current()) {
  return wsfast::emulator::shuffle(mask, value, "__shfl_xor_sync", where,
                                   [=](int lane) { return (lane ^ bits) & 31; });
}
inline unsigned __ballot_sync(unsigned mask, bool predicate,
                              WsLocation where = WsLocation::current()) {
  return wsfast::emulator::warp_exchange(
      mask, predicate, "__ballot_sync", where, [](int, const auto& shown_by) {
        unsigned ballot = 0;
        for (int lane = 0; lane < 32; ++lane) ballot |= unsigned{shown_by(lane)} << lane;
        return ballot;
      });
}

// Waiting threads let others run, so that loops around atomicCAS end.
inline void __nanosleep(unsigned) { wsfast::emulator::Scheduler::instance().yield(); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T, class Change>
T ws_emulated_atomic(T* address, Change change) {
  wsfast::emulator::Scheduler::instance().maybe_yield();
  const T before = *address;
  *address = change(before);
  return before;
}
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return ws_emulated_atomic(address, [=](T old) { return old + value; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return ws_emulated_atomic(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return ws_emulated_atomic(address, [=](T old) { return value > old ? value : old; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return ws_emulated_atomic(address, [=](T old) { return old | value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  const T before =
      ws_emulated_atomic(address, [=](T old) { return old == expected ? value : old; });
  if (before != expected) wsfast::emulator::Scheduler::instance().yield();
  return before;
}

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
template <class T>
T __ldg(const T* address) {
  return *address;
}
