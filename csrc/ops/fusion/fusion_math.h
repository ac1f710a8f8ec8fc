// Normalisation and half-pixel bilinear resizing of class activation maps, for host and device.
#pragma once

#include <cstdint>
#include <limits>

#include "../../core/device.h"

namespace wsfast::fusion {

enum class Norm { none, minmax, max };
enum class Reduce { sum, max, prod };

// What normalisation needs to know of one map.
template <class A>
struct Stats {
  A low, high;
  bool finite;
};

template <class A>
WS_HD Stats<A> merge(const Stats<A>& a, const Stats<A>& b) {
  const bool finite = a.finite & b.finite;  // no branch
  return {b.low < a.low ? b.low : a.low, b.high > a.high ? b.high : a.high, finite};
}

// value -> (value - shift) * scale
template <class A>
struct Affine {
  A shift, scale;

  WS_HD A operator()(A value) const { return (value - shift) * scale; }
};

// The factor that divides by `divisor`; 0 where that is below the smallest normal number, since its
// reciprocal may overflow: such a map counts as flat.
template <class A>
WS_HD A factor_of(A divisor) {
  return divisor < std::numeric_limits<A>::min() ? A(0) : A(1) / divisor;
}

constexpr int kFlatEpsilons = 16;  // of the largest value

// Whether the values differ by no more than sums of layers are rounded, which min-max would stretch
// to the whole range.
template <class A>
WS_HD bool is_flat(A low, A high) {
  const A below = low < A(0) ? -low : low, above = high < A(0) ? -high : high;
  const A largest = below > above ? below : above;
  return high - low <= kFlatEpsilons * std::numeric_limits<A>::epsilon() * largest;
}

// minmax: (m - min) / (max(m - min) + eps), 0 where m is flat; max: m / (max(m) + eps), 0 where no
// value is positive. Where layers add up to more than A holds, what is still finite becomes 0 and
// the rest NaN. none: m as it is.
template <class A>
WS_HD Affine<A> normalization(const Stats<A>& stats, Norm norm, double eps) {
  if (norm == Norm::none) return {A(0), A(1)};
  if (!stats.finite) return {A(0), A(0)};
  const A e = static_cast<A>(eps);
  if (norm == Norm::minmax) {
    const A range = stats.high - stats.low;
    return {stats.low, is_flat(stats.low, stats.high) ? A(0) : factor_of(range + e)};
  }
  return {A(0), stats.high > A(0) ? factor_of(stats.high + e) : A(0)};
}

// What the gradient of `normalization` needs to know of one map: sums over its pixels of the incoming
// gradient, and of that times the normalised value; how often the extremes occur.
template <class A>
struct GradientSums {
  A gradient, product;
  int64_t lowest, highest;
};

template <class A>
WS_HD GradientSums<A> merge(const GradientSums<A>& a, const GradientSums<A>& b) {
  return {a.gradient + b.gradient, a.product + b.product, a.lowest + b.lowest,
          a.highest + b.highest};
}

// gradient -> scale * gradient, and shares for the pixels that hold the lowest and highest value
template <class A>
struct NormGradient {
  A scale, low, high, low_share, high_share;

  WS_HD A operator()(A value, A gradient) const {
    return scale * gradient + (value >= high ? high_share : A(0)) -
           (value <= low ? low_share : A(0));
  }
};

// The gradient of `weight * affine(map)`, affine = normalization(stats, norm): the divisor depends on
// the extremes, whose pixels share that gradient evenly. Sums may be wider than A.
template <class A, class Sum>
WS_HD NormGradient<A> normalization_gradient(const Stats<A>& stats, const Affine<A>& affine, Norm norm,
                                             A weight, const GradientSums<Sum>& sums) {
  const A scale = weight * affine.scale;
  if (norm == Norm::none || scale == A(0)) return {scale, stats.low, stats.high, A(0), A(0)};
  const Sum high = -scale * sums.product;
  const Sum low = norm == Norm::minmax ? scale * sums.gradient + high : Sum(0);
  return {scale, stats.low, stats.high, static_cast<A>(low / static_cast<Sum>(sums.lowest)),
          static_cast<A>(high / static_cast<Sum>(sums.highest))};
}

// The two source positions of an output position and the weight of the second: half-pixel centres,
// clamped at the border (F.interpolate with align_corners=False).
template <class A, class Index = int64_t>
struct Tap {
  Index first, second;
  A weight;
};

// `scale` is in_size / out_size.
template <class A, class Index>
WS_HD Tap<A, Index> scaled_tap(Index position, Index in_size, A scale) {
  A source = (static_cast<A>(position) + A(0.5)) * scale - A(0.5);
  if (source < A(0)) source = A(0);
  Index first = static_cast<Index>(source);
  if (first > in_size - 1) first = in_size - 1;
  const Index second = first + 1 < in_size ? first + 1 : first;
  return {first, second, source - static_cast<A>(first)};
}

template <class A>
WS_HD Tap<A> bilinear_tap(int64_t position, int64_t in_size, int64_t out_size) {
  return scaled_tap<A>(position, in_size, static_cast<A>(in_size) / static_cast<A>(out_size));
}

template <class A>
WS_HD A combine(A so_far, A value, Reduce reduce) {
  if (reduce == Reduce::sum) return so_far + value;
  if (reduce == Reduce::prod) return so_far * value;
  return so_far > value ? so_far : value;
}

}  // namespace wsfast::fusion
