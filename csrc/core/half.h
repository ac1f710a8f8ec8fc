// The 16-bit element types of the kernels: storage only, arithmetic happens in acc_t<T>.
//
// half_t has the bits of IEEE 754 binary16 and bfloat16_t those of bfloat16, so torch's, CUDA's and
// NumPy's buffers are read as they are. Widening is exact; narrowing rounds to nearest even, keeps
// infinities and turns every NaN into a quiet NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "device_macros.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace wsfast {

struct half_t {
  uint16_t bits;
};

struct bfloat16_t {
  uint16_t bits;
};

WS_HD inline uint32_t float_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}

WS_HD inline float bits_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

WS_HD inline float to_float(half_t value) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(value.bits));
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16, magnitude = value.bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return bits_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  if (magnitude >= 0x0400u) return bits_float(sign | ((magnitude << 13) + (112u << 23)));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return bits_float(sign | float_bits(subnormal));
#endif
}

WS_HD inline half_t half_from_float(float value) {
#ifdef __CUDA_ARCH__
  return {__half_as_ushort(__float2half_rn(value))};
#else
  const uint32_t bits = float_bits(value);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;
  } else if (magnitude >= 0x47800000u) {  // 2^16 and above
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14 and above; a carry from 65504 makes infinity
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    half = (rounded - (112u << 23)) >> 13;
  } else {  // one ulp of 0.5f is the half type's subnormal step 2^-24: the addition rounds
    half = float_bits(bits_float(magnitude) + 0.5f) - float_bits(0.5f);
  }
  return {static_cast<uint16_t>(sign | half)};
#endif
}

WS_HD inline float to_float(bfloat16_t value) {
  return bits_float(static_cast<uint32_t>(value.bits) << 16);
}

WS_HD inline bfloat16_t bfloat16_from_float(float value) {
#ifdef __CUDA_ARCH__
  return {__bfloat16_as_ushort(__float2bfloat16_rn(value))};
#else
  const uint32_t bits = float_bits(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | 0x7fc0u)};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
#endif
}

// The type in which values of element type T are computed.
template <class T>
struct Accumulate {
  using type = T;
};
template <>
struct Accumulate<half_t> {
  using type = float;
};
template <>
struct Accumulate<bfloat16_t> {
  using type = float;
};
template <class T>
using acc_t = typename Accumulate<T>::type;

template <class T>
WS_HD inline acc_t<T> to_acc(T value) {
  return value;
}
template <>
WS_HD inline float to_acc<half_t>(half_t value) {
  return to_float(value);
}
template <>
WS_HD inline float to_acc<bfloat16_t>(bfloat16_t value) {
  return to_float(value);
}

template <class T>
WS_HD inline T from_acc(acc_t<T> value) {
  return value;
}
template <>
WS_HD inline half_t from_acc<half_t>(float value) {
  return half_from_float(value);
}
template <>
WS_HD inline bfloat16_t from_acc<bfloat16_t>(float value) {
  return bfloat16_from_float(value);
}

}  // namespace wsfast
