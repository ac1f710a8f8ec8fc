// Otsu's threshold on 8-bit levels, exactly: integer class sums, comparisons without rounding. And
// the order of components by size. For host and device.
#pragma once

#include <cstdint>

#include "../../core/device.h"

namespace wsfast::boxes {

inline constexpr int kLevels = 256;

// trunc(255 x), clamped to 0..255; NaN gives 0. In the map's own precision (half types in float32):
// a float64 map must not be rounded to float32 across a level.
template <class A>
WS_HD int level_of(A value) {
  const A scaled = value * A(255);
  const A above = scaled > A(0) ? scaled : A(0);  // branch-free, so loops over it vectorise
  return static_cast<int>(above < A(255) ? above : A(255));
}

// The between-class variance of two classes of n1 and n2 pixels, up to a factor that all splits of
// one map share: d^2 / (n1 n2), where d = n2 s1 - n1 s2 and s are the sums of levels (Otsu 1979).
class Variance {
 public:
  WS_HD Variance() : difference_(0), product_(1), approximate_(0) {}
  WS_HD Variance(int64_t n1, int64_t s1, int64_t n2, int64_t s2)
      : product_(static_cast<uint64_t>(n1) * static_cast<uint64_t>(n2)) {
    double size;
    if (n1 + n2 <= kSmall) {
      const int64_t d = n2 * s1 - n1 * s2;
      difference_ = static_cast<uint64_t>(d < 0 ? -d : d);
      size = static_cast<double>(d);
    } else {
      const auto d = static_cast<__int128>(n2) * s1 - static_cast<__int128>(n1) * s2;
      difference_ = static_cast<Wide>(d < 0 ? -d : d);
      size = to_double(difference_);
    }
    approximate_ = size / static_cast<double>(static_cast<int64_t>(product_)) * size;
  }

  // Doubles decide wherever they can; the margin is far above their rounding errors.
  WS_HD bool operator>(const Variance& other) const {
    if (approximate_ > other.approximate_ * (1 + 1e-12)) return true;
    if (approximate_ < other.approximate_ * (1 - 1e-12)) return false;
    return exactly_above(other);
  }

 private:
  using Wide = unsigned __int128;

  static constexpr int64_t kSmall = int64_t{1} << 28;  // pixels for which 64 bits hold d

  WS_HD static double to_double(Wide value) {
    const auto low = static_cast<uint64_t>(value), high = static_cast<uint64_t>(value >> 64);
    return static_cast<double>(high) * 0x1p64 + static_cast<double>(low);
  }

  // d^2 / p as a whole part and a rest below p. d / p is a difference of mean levels, at most 255,
  // so nothing here passes 128 bits for maps of up to 2^31 pixels.
  WS_HD Wide whole_and_rest(Wide& rest) const {
    const Wide quotient = difference_ / product_;
    const Wide left = difference_ * (difference_ - quotient * product_);
    rest = left % product_;
    return difference_ * quotient + left / product_;
  }

  WS_HD bool exactly_above(const Variance& other) const {
    Wide rest, other_rest;
    const Wide whole = whole_and_rest(rest), other_whole = other.whole_and_rest(other_rest);
    if (whole != other_whole) return whole > other_whole;
    return rest * other.product_ > other_rest * product_;
  }

  Wide difference_;
  uint64_t product_;
  double approximate_;
};

// The level T that splits {<= T} from {> T} best, the first of equals. Only levels from `from` on
// count. 0 where there are not two classes.
WS_HD inline int otsu_level(const int64_t* histogram, int from) {
  int64_t total = 0, sum = 0;
  for (int level = from; level < kLevels; ++level) {
    total += histogram[level];
    sum += histogram[level] * level;
  }
  int best_level = 0;
  Variance best;
  int64_t n1 = 0, s1 = 0;
  for (int level = from; level < kLevels; ++level) {
    if (histogram[level] == 0) continue;  // splits as the level before does
    n1 += histogram[level];
    s1 += histogram[level] * level;
    if (n1 == total) break;
    const Variance variance(n1, s1, total - n1, sum - s1);
    if (variance > best) {
      best = variance;
      best_level = level;
    }
  }
  return best_level;
}

// Otsu again on what lies above the level found, `repeat` times in all; stops where nothing is left
// to split.
WS_HD inline int repeated_otsu_level(const int64_t* histogram, int64_t repeat) {
  int level = otsu_level(histogram, 0);
  for (int64_t i = 1; i < repeat; ++i) {
    const int next = otsu_level(histogram, level + 1);
    if (next <= level) break;
    level = next;
  }
  return level;
}

// A component as a number: smaller is a larger area or, among equals, an earlier component.
WS_HD inline uint64_t size_key(int32_t area, uint32_t component) {
  return static_cast<uint64_t>(~static_cast<uint32_t>(area)) << 32 | component;
}
WS_HD inline int32_t component_of(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }
WS_HD inline int32_t area_of(uint64_t key) {
  return static_cast<int32_t>(~static_cast<uint32_t>(key >> 32));
}

}  // namespace wsfast::boxes
