// Otsu's threshold on 8-bit levels, exactly: integer class sums, comparisons without rounding.
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

// A non-negative fraction, compared exactly: by whole part, then by cross products of the rests.
struct Fraction {
  using Wide = unsigned __int128;
  Wide whole, rest, divisor;

  Fraction(Wide top, Wide bottom) : whole(top / bottom), rest(top % bottom), divisor(bottom) {}

  bool operator>(const Fraction& other) const {
    if (whole != other.whole) return whole > other.whole;
    return rest * other.divisor > other.rest * divisor;
  }
};

// The level T that splits {<= T} from {> T} best, the first of equals: it maximises the between-
// class variance, (total s1 - n1 sum)^2 / (n1 (total - n1)). Only levels from `from` on count. 0
// where there are not two classes. Exact for maps of up to 2^28 pixels.
inline int otsu_level(const int64_t* histogram, int from) {
  int64_t total = 0, sum = 0;
  for (int level = from; level < kLevels; ++level) {
    total += histogram[level];
    sum += histogram[level] * level;
  }
  int best_level = 0;
  Fraction best(0, 1);
  int64_t n1 = 0, s1 = 0;
  for (int level = from; level < kLevels - 1; ++level) {
    n1 += histogram[level];
    s1 += histogram[level] * level;
    if (n1 == 0 || n1 == total) continue;
    const __int128 gap = static_cast<__int128>(total) * s1 - static_cast<__int128>(n1) * sum;
    const auto size = static_cast<Fraction::Wide>(gap < 0 ? -gap : gap);
    const auto bottom = static_cast<Fraction::Wide>(n1) * static_cast<Fraction::Wide>(total - n1);
    const Fraction variance(size * size, bottom);
    if (variance > best) {
      best = variance;
      best_level = level;
    }
  }
  return best_level;
}

// Otsu again on what lies above the level found, `repeat` times in all; stops where nothing is left
// to split.
inline int repeated_otsu_level(const int64_t* histogram, int64_t repeat) {
  int level = otsu_level(histogram, 0);
  for (int64_t i = 1; i < repeat; ++i) {
    const int next = otsu_level(histogram, level + 1);
    if (next <= level) break;
    level = next;
  }
  return level;
}

}  // namespace wsfast::boxes
