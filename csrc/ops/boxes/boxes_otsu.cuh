// Otsu's level by one warp. Needs a histogram and no more, so that other rooms can use it.
#pragma once

#include "boxes_math.h"

namespace wsfast::boxes {

template <class T>
WS_DEVICE T warp_inclusive_sum(T value) {
  for (int delta = 1; delta < kWarpSize; delta *= 2) {
    const T below = warp_shfl_up(value, delta);
    if (warp_lane() >= delta) value += below;
  }
  return value;
}

// {<= level}, n1 pixels with the sum s1 of levels, against the rest.
struct Split {
  int level;  // -1: none
  int64_t n1, s1;

  WS_DEVICE Variance variance(int64_t total, int64_t sum) const {
    return Variance(n1, s1, total - n1, sum - s1);
  }
};

// The best of the lanes' splits, for all lanes. The higher the lane, the higher its level, so that
// of equals the one from the lower lanes is the first.
WS_DEVICE inline Split warp_best_split(Split best, Variance most, int64_t total, int64_t sum) {
  for (int mask = 1; mask < kWarpSize; mask *= 2) {
    const Split other{warp_shfl_xor(best.level, mask), warp_shfl_xor(best.n1, mask),
                      warp_shfl_xor(best.s1, mask)};
    if (other.level < 0) continue;
    const Variance variance = other.variance(total, sum);
    const bool from_lower = warp_lane() & mask;
    if (best.level < 0 || (from_lower ? !(most > variance) : variance > most)) {
      best = other;
      most = variance;
    }
  }
  return best;
}

// otsu_level by a warp, for all its lanes; a lane tries some levels in a row. Variances compare
// exactly, so the order of comparisons does not matter.
template <class Count>
WS_DEVICE int warp_otsu_level(const Count* histogram, int from) {
  constexpr int lane_levels = kLevels / kWarpSize;
  const int first = warp_lane() * lane_levels;
  const auto count_at = [&](int level) -> int64_t { return level < from ? 0 : histogram[level]; };
  int64_t n = 0, s = 0;  // of the lane's levels
  for (int level = first; level < first + lane_levels; ++level) {
    n += count_at(level);
    s += count_at(level) * level;
  }
  int64_t n1 = warp_inclusive_sum(n), s1 = warp_inclusive_sum(s);
  const int64_t total = warp_shfl(n1, kWarpSize - 1), sum = warp_shfl(s1, kWarpSize - 1);
  n1 -= n;
  s1 -= s;
  Split best{-1, 0, 0};
  Variance most;
  for (int level = first; level < first + lane_levels; ++level) {
    const int64_t count = count_at(level);
    if (count == 0) continue;  // splits as the level before does
    n1 += count;
    s1 += count * level;
    if (n1 == total) break;
    const Split split{level, n1, s1};
    const Variance variance = split.variance(total, sum);
    if (variance > most) {
      best = split;
      most = variance;
    }
  }
  best = warp_best_split(best, most, total, sum);
  return best.level < 0 ? 0 : best.level;
}

// repeated_otsu_level by a warp, for all its lanes.
template <class Count>
WS_DEVICE int warp_repeated_otsu_level(const Count* histogram, int64_t repeat) {
  int level = -1;
  int64_t rounds = 0;
  do {
    const int next = warp_otsu_level(histogram, level + 1);
    if (next <= level) break;
    level = next;
  } while (++rounds < repeat);
  return level;
}

}  // namespace wsfast::boxes
