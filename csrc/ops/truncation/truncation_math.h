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
#include <limits>

#include "../../core/device.h"

namespace wsfast::truncation {

struct Rank {
  int64_t lower;    // floor of the fractional rank
  int64_t upper;    // ceil of it: the smallest value that is kept
  double fraction;  // position between the two
};

// Multiplied before divided: exact for whole q, where q/100 would already be rounded.
WS_HD inline Rank percentile_rank(double percentile, int64_t positives) {
  const double position = percentile * static_cast<double>(positives - 1) / 100.0;
  const double lower = floor(position);
  return {static_cast<int64_t>(lower), static_cast<int64_t>(ceil(position)), position - lower};
}

// Linear interpolation between the two order statistics; equal ends stay exact (and inf - inf
// never happens).
template <class A>
WS_HD inline A interpolate(A lower, A upper, double fraction) {
  if (lower == upper || fraction == 0.0) return lower;
  const double span = static_cast<double>(upper) - static_cast<double>(lower);
  return static_cast<A>(static_cast<double>(lower) + fraction * span);
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
