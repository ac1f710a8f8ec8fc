// Formulas of the protocol: its boxes, its IoU, the range of levels a contour lives in, and what is
// best at each of the 256 levels. Level L stands for the mask {u8 > L}.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../boxes/boxes_math.h"

namespace wsfast::levels {

using boxes::kLevels;
using boxes::level_of;

// Columns [x0, x1) and rows [y0, y1).
struct Box {
  int32_t x0, y0, x1, y1;

  bool operator==(const Box&) const = default;
};

inline constexpr Box kNoBox{-1, -1, -1, -1};

// The contour of a hole runs through the pixels around it.
inline Box around_hole(const Box& hole) {
  return {hole.x0 - 1, hole.y0 - 1, hole.x1 + 1, hole.y1 + 1};
}

// The corners the protocol scores: the exclusive end, clipped to the last pixel, and then read as
// if it were inclusive. Boxes are one pixel too large except at the right and bottom border.
inline Box protocol_corners(const Box& box, int32_t height, int32_t width) {
  return {box.x0, box.y0, std::min(box.x1, width - 1), std::min(box.y1, height - 1)};
}

inline int64_t inclusive_area(int64_t x0, int64_t y0, int64_t x1, int64_t y1) {
  return (x1 - x0 + 1) * (y1 - y0 + 1);
}

// Intersection over union of two boxes with inclusive corners; `truth` is x0, y0, x1, y1.
inline double inclusive_iou(const Box& box, const int64_t* truth) {
  const int64_t x0 = std::max<int64_t>(box.x0, truth[0]);
  const int64_t y0 = std::max<int64_t>(box.y0, truth[1]);
  const int64_t x1 = std::min<int64_t>(box.x1, truth[2]);
  const int64_t y1 = std::min<int64_t>(box.y1, truth[3]);
  if (x1 < x0 || y1 < y0) return 0.0;
  const int64_t shared = inclusive_area(x0, y0, x1, y1);
  const int64_t united = inclusive_area(box.x0, box.y0, box.x1, box.y1) +
                         inclusive_area(truth[0], truth[1], truth[2], truth[3]) - shared;
  return static_cast<double>(shared) / static_cast<double>(united);
}

// Levels [first, last].
struct LevelRange {
  int first, last;
};

// A component of {u8 >= level} that is not one of {u8 >= parent}: seen at every L in between.
inline LevelRange component_range(int level, int parent) { return {parent, level - 1}; }

// The same of the inverted map: a hole of {255 - u8 >= level} = {u8 <= 255 - level}.
inline LevelRange hole_range(int level, int parent) { return {255 - level, 254 - parent}; }

// The largest value offered for each level, where one offer covers a range of levels: O(1) per
// offer. Row k holds offers that cover 2^k levels; a range is covered by two of them.
template <class Value>
class LevelMaximum {
 public:
  explicit LevelMaximum(const Value& lowest) {
    for (auto& row : best_) std::fill(row, row + kLevels, lowest);
  }

  void offer(LevelRange range, const Value& value) {
    const int length = range.last - range.first + 1;
    const int k = 31 - __builtin_clz(static_cast<unsigned>(length));
    raise(best_[k][range.first], value);
    raise(best_[k][range.last + 1 - (1 << k)], value);
  }

  // Call once, after the last offer.
  const Value* settle() {
    for (int k = kRows - 1; k > 0; --k) {
      const int half = 1 << (k - 1);
      for (int level = 0; level + 2 * half <= kLevels; ++level) {
        raise(best_[k - 1][level], best_[k][level]);
        raise(best_[k - 1][level + half], best_[k][level]);
      }
    }
    return best_[0];
  }

 private:
  static constexpr int kRows = 9;

  static void raise(Value& held, const Value& value) {
    if (held < value) held = value;
  }

  Value best_[kRows][kLevels];
};

}  // namespace wsfast::levels
