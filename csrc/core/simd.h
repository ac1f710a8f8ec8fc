// SIMD chosen at run time: the same kernel body is compiled for several instruction sets in one
// file, and the best one that the CPU has is picked when the library runs.
//
// A room writes its body once in <room>_simd.h (no include guard, everything inside
// `namespace wsfast::<room>::WS_SIMD`) against the vector type `simd::WS_SIMD::Vec`, and includes
// it through core/foreach_simd.h. WSFAST_SIMD=scalar|avx2|avx512 caps the choice (tests use it).
#pragma once

#include <cstdlib>
#include <cstring>

#include "device.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)  // clang ignores these pragmas
#define WS_X86_SIMD 1
#include <immintrin.h>
// Everything between a BEGIN and WS_END_TARGET is compiled for that instruction set.
#define WS_BEGIN_AVX2          \
  _Pragma("GCC push_options") \
  _Pragma("GCC target(\"avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt\")")
#define WS_BEGIN_AVX512        \
  _Pragma("GCC push_options") \
  _Pragma("GCC target(\"avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2,lzcnt,popcnt\")")
#define WS_END_TARGET _Pragma("GCC pop_options")
#else
#define WS_X86_SIMD 0
#endif

namespace wsfast {

enum class SimdLevel { scalar = 0, avx2 = 1, avx512 = 2 };

inline SimdLevel detect_simd_level() {
  SimdLevel level = SimdLevel::scalar;
#if WS_X86_SIMD
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("bmi2")) {
    level = SimdLevel::avx2;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      level = SimdLevel::avx512;
    }
  }
#endif
  const char* cap = std::getenv("WSFAST_SIMD");
  if (cap != nullptr && std::strcmp(cap, "scalar") == 0) return SimdLevel::scalar;
  if (cap != nullptr && std::strcmp(cap, "avx2") == 0 && level > SimdLevel::avx2) {
    return SimdLevel::avx2;
  }
  return level;
}

inline SimdLevel simd_level() {
  static const SimdLevel level = detect_simd_level();
  return level;
}

}  // namespace wsfast

#include "simd_scalar.h"
#if WS_X86_SIMD
WS_BEGIN_AVX2
#include "simd_avx2.h"
WS_END_TARGET
WS_BEGIN_AVX512
#include "simd_avx512.h"
WS_END_TARGET
#endif

// Defines dispatch_simd(body), which calls body.operator()<Loops>() with the room's struct of loops
// for this CPU. Goes where the WS_SIMD namespaces of the room are in scope.
#if WS_X86_SIMD
#define WS_DEFINE_DISPATCH_SIMD(Loops)                                                           \
  template <class Body>                                                                          \
  void dispatch_simd(const Body& body) {                                                         \
    if (simd_level() == SimdLevel::avx512) return body.template operator()<avx512::Loops>();     \
    if (simd_level() == SimdLevel::avx2) return body.template operator()<avx2::Loops>();         \
    body.template operator()<scalar::Loops>();                                                   \
  }
#else
#define WS_DEFINE_DISPATCH_SIMD(Loops)         \
  template <class Body>                        \
  void dispatch_simd(const Body& body) {       \
    body.template operator()<scalar::Loops>(); \
  }
#endif
