// The permutohedral lattice: geometry, packed vertex keys and the blur, for host and device.
#pragma once

#include <cmath>
#include <cstdint>

#include "../../core/device.h"

namespace wsfast::crf {

inline constexpr int kLargestDimension = 8;
inline constexpr int kKeyBits = 62;

// How A is applied: B blurs along axes 0..d, its adjoint along d..0, symmetric is their mean.
enum class Direction { symmetric, forward, transpose };

// After this scaling of axis i the blur has unit variance.
WS_HD inline double elevation_scale(int d, int i) {
  return (d + 1) * std::sqrt(2.0 / 3.0) / std::sqrt((i + 1.0) * (i + 2.0));
}

// Brings the weight of a vertex on itself to 1 where all its neighbours exist.
WS_HD inline double blur_scale(int d) { return 1.0 / (1.0 + std::ldexp(1.0, -d)); }

// One value as find_simplex wants it.
template <class A>
struct SingleLane {
  using Scalar = A;
  using Real = A;
  using Int = int32_t;
  // To the nearest, ties to even; |value| < 2^22.
  static WS_HD Int round(Real value) {
    const Real magic = sizeof(A) == 4 ? Real(12582912.0) : Real(6755399441055744.0);
    return static_cast<Int>((value + magic) - magic);
  }
  static WS_HD Real real(Int value) { return static_cast<Real>(value); }
  static WS_HD Int less(Real a, Real b) { return a < b ? -1 : 0; }
  static WS_HD Int below(Int a, Int b) { return a < b ? -1 : 0; }
  static WS_HD Int above(Int a, Int b) { return a > b ? -1 : 0; }
  static WS_HD Real min(Real a, Real b) { return b < a ? b : a; }
  static WS_HD Real max(Real a, Real b) { return b > a ? b : a; }
};

#include "crf_simplex.h"

// The vertices around points of bounded features, as one integer each: the colour (coordinate
// modulo d + 1) in the highest digit, then the quotients of the first d coordinates. All steps
// between vertices are constants: vertex k of a simplex follows vertex k - 1 by one colour minus the
// stride of the axis with rank d + 1 - k.
struct KeySpace {
  int d;
  int64_t stride[kLargestDimension + 1];  // per axis; 0 for the last, whose coordinate follows
  int64_t colour;                         // stride of the colours
  int64_t base;                           // added to the sum of stride * quotient
  int bits;                               // of the largest key; 0 where the keys do not fit

  // One step along a blur axis (every coordinate -1, the axis' own +d) adds the stride of the axis
  // and, to keys of colour 0, this; to others it adds minus one colour.
  WS_HD int64_t wrapping_step() const {
    int64_t step = d * colour;
    for (int i = 0; i < d; ++i) step -= stride[i];
    return step;
  }
};

// A quotient of more bits would leave too few of the features' type for the weights; an offset of the
// features counts as much as their range.
template <class A>
inline constexpr int axis_bits = sizeof(A) == 4 ? 18 : 30;

// `low` and `high` bound the scaled features.
WS_HD inline KeySpace key_space(int d, const double* low, const double* high, int axis_bits) {
  KeySpace space{d, {}, 0, 0, 0};
  double below = 0.0, above = 0.0;  // sums over the axes from j on
  double first[kLargestDimension], last[kLargestDimension];
  for (int j = d - 1; j >= 0; --j) {
    below += low[j];
    above += high[j];
    first[j] = below - (j > 0 ? j * high[j - 1] : 0.0);
    last[j] = above - (j > 0 ? j * low[j - 1] : 0.0);
  }
  double size = d + 1.0;
  double origin[kLargestDimension], range[kLargestDimension];
  for (int j = 0; j < d; ++j) {
    origin[j] = std::floor(first[j] / (d + 1)) - 3.0;  // vertices around the points and neighbours
    const double end = std::ceil(last[j] / (d + 1)) + 4.0;
    range[j] = end - origin[j];
    size *= range[j];
    if (!(std::fmax(-origin[j], end) <= std::ldexp(1.0, axis_bits))) return space;
  }
  if (!(size <= std::ldexp(1.0, kKeyBits))) return space;
  int64_t stride = 1;
  uint64_t base = 0;  // modulo 2^64: the sums it takes part in are the keys
  for (int j = 0; j < d; ++j) {
    space.stride[j] = stride;
    base -= static_cast<uint64_t>(static_cast<int64_t>(origin[j])) * static_cast<uint64_t>(stride);
    stride *= static_cast<int64_t>(range[j]);
  }
  space.colour = stride;
  space.base = static_cast<int64_t>(base);
  space.bits = 1 + std::ilogb(size);
  return space;
}

}  // namespace wsfast::crf
