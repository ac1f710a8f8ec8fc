// Percentile truncation of positive gradients: the formulas, for host and device.
//
// LTGrad-CAM eq. 9-11, RA-CAM eq. 5-6: delta is the q-th percentile (linear, as numpy's) of the
// positive gradients of one row; g is kept where g >= delta and g > 0. A row is one feature map
// (scope "map") or all the maps of one sample (scope "sample").
//
// No interpolation is needed to know what is kept: delta lies between two neighbouring order
// statistics, so {g >= delta} = {g >= order statistic of rank ceil(q/100 (m-1))}, m positives.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "../../core/device.h"

namespace wsfast::truncation {

// The unsigned integer of T's size.
template <class T>
using bits_t = std::conditional_t<sizeof(T) == 2, uint16_t,
                                  std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>>;

struct Rank {
  int64_t lower;    // floor of the fractional rank
  int64_t upper;    // ceil of it: the smallest value that is kept
  double fraction;  // position between the two
};

// Multiplied before divided, and a position within rounding of a whole rank is that rank: exact for
// whole and for decimal q, where 8.8 % of 375 places, say, would lie just above 33.
WS_HD inline Rank percentile_rank(double percentile, int64_t positives) {
  double position = percentile * static_cast<double>(positives - 1) / 100.0;
  const double whole = floor(position + 0.5);
  if (fabs(position - whole) <= position * 0x1p-51) position = whole;
  const double lower = floor(position);
  return {static_cast<int64_t>(lower), static_cast<int64_t>(ceil(position)), position - lower};
}

// Linear interpolation between the two order statistics, rounded once. What lies between them stays
// above the lower one, so that {g >= result} is what is kept; equal ends stay exact (and inf - inf
// never happens).
template <class T>
WS_HD inline T interpolate(acc_t<T> lower, acc_t<T> upper, double fraction) {
  if (lower == upper || fraction == 0.0) return from_acc<T>(lower);
  const double span = static_cast<double>(upper) - static_cast<double>(lower);
  const double between = static_cast<double>(lower) + fraction * span;
  T result = from_acc<T>(static_cast<acc_t<T>>(between));
  if (to_acc(result) > upper) return from_acc<T>(upper);
  if (!(to_acc(result) > lower)) {
    bits_t<T> bits;  // of positive values these order like them: the next one
    memcpy(&bits, &result, sizeof(bits));
    ++bits;
    memcpy(&result, &bits, sizeof(bits));
  }
  return result;
}

template <class A>
WS_HD inline A infinity() {
  return std::numeric_limits<A>::infinity();
}

template <class A>
WS_HD inline A smallest_positive() {
  return std::numeric_limits<A>::denorm_min();
}

}  // namespace wsfast::truncation
