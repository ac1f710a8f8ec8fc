// What OpenCV's findContours and contourArea say of {u8 > L}, for all 256 levels L at once.
//
// contourArea is the area of the polygon through the centres of the border pixels: twice that area
// is, over the 2 x 2 quads of the component with its holes filled, those with three members plus
// twice those with four. Filling the holes of the map itself, in grey levels, fills those of every
// level; a component inside a hole is smaller than the one around it and never wins.
#pragma once

#include <array>
#include <atomic>

#include "levels_basins.h"
#include "levels_flood.h"

namespace wsfast::levels {

// Workspace of one thread: one map after the other.
class Contours {
 public:
  // Reads a map: write_row(y, row) writes its levels and tells whether it is free of NaN, as this does.
  template <class WriteRow>
  bool read(int32_t height, int32_t width, const WriteRow& write_row) {
    map_.resize(height, width);
    std::atomic<bool> numbers{true};
    for_row_bands({0, height, width}, [&](int32_t begin, int32_t end) {
      bool known = true;
      for (int32_t y = begin; y < end; ++y) known &= write_row(y, map_.row(y));
      if (!known) numbers.store(false, std::memory_order_relaxed);
    });
    return numbers;
  }

  // The largest contour at each level: its box and twice its area, -1 where there is none. The
  // first of equals in OpenCV's order is the one whose first pixel comes last in raster order.
  void largest(int32_t* boxes, int32_t* area2) {
    const Output out{boxes, area2};
    frame_inverted();
    if (basins_.split<4>(inverted_)) {
      fill_basins();
      if (basins_.split<8>(map_)) return largest_of_basins(out);
    }
    flood_.largest(map_, [&](int level, const Box& box, int32_t area) {
      out.write(level, box, area);
    });
  }

  // The best of score(box) over the outer contours at each level, -1 where there is none.
  template <class Score>
  void best_component(const Score& score, double* result) {
    if (basins_.split<8>(map_)) {
      best_of_basins(-1, result, [](int level) { return level - 1; }, score);
      return;
    }
    best_of_flood(result, [&](LevelMaximum<double>& best) {
      flood_.components(map_, [&](LevelRange range, const Box& box) {
        best.offer(range, score(box));
      });
    });
  }

  // The same over the contours of holes.
  template <class Score>
  void best_hole(const Score& score, double* result) {
    frame_inverted();
    const auto score_hole = [&](const Box& hole) {  // the frame shifts it by one pixel
      return score(around_hole({hole.x0 - 1, hole.y0 - 1, hole.x1 - 1, hole.y1 - 1}));
    };
    if (basins_.split<4>(inverted_)) {
      best_of_basins(kFrame, result, [](int level) { return 255 - level; }, score_hole);
      return;
    }
    best_of_flood(result, [&](LevelMaximum<double>& best) {
      flood_.holes(map_, [&](LevelRange range, const Box& box) {
        best.offer(range, score(around_hole(box)));
      });
    });
  }

 private:
  static constexpr int32_t kFrame = 0;  // the basin of the inverted map's frame, and its group

  struct Output {
    int32_t* boxes;
    int32_t* area2;

    void write(int level, const Box& box, int32_t area) const {
      const std::array<int32_t, 4> corners{box.x0, box.y0, box.x1, box.y1};
      std::copy(corners.begin(), corners.end(), boxes + 4 * level);
      area2[level] = area;
    }
  };

  void largest_of_basins(const Output& out) {
    basins_.measure_boxes();
    basins_.measure_areas();
    out.write(kLevels - 1, kNoBox, -1);
    basins_.descend([&](int level) {
      const std::vector<Box>& boxes = basins_.group_boxes(level);
      const std::vector<int32_t>& areas = basins_.group_areas(level);
      int32_t best = -1;
      for (int32_t group = 0; group < basins_.count(); ++group) {
        if (!Basins::is_somewhere(boxes[group])) continue;
        if (best < 0 || areas[group] > areas[best] ||
            (areas[group] == areas[best] && starts_before(best, group, level, boxes))) {
          best = group;
        }
      }
      out.write(level - 1, best < 0 ? kNoBox : boxes[best], best < 0 ? -1 : areas[best]);
    });
  }

  // Whether group a has a pixel at the level, in raster order, before group b has.
  bool starts_before(int32_t a, int32_t b, int level, const std::vector<Box>& boxes) const {
    const int32_t y = boxes[a].y0;
    if (y != boxes[b].y0) return y < boxes[b].y0;
    return basins_.first_column(a, y, level) < basins_.first_column(b, y, level);
  }

  // `slot(level)` is where the result for the image's level belongs; leaves one group out.
  template <class Slot, class Score>
  void best_of_basins(int32_t left_out, double* result, const Slot& slot, const Score& score) {
    basins_.measure_boxes();
    std::fill_n(result, kLevels, -1.0);
    scored_.assign(basins_.count(), {kNoBox, -1.0});
    basins_.descend([&](int level) {
      const std::vector<Box>& boxes = basins_.group_boxes(level);
      double& best = result[slot(level)];
      for (int32_t group = 0; group < basins_.count(); ++group) {
        if (group == left_out || !Basins::is_somewhere(boxes[group])) continue;
        Scored& last = scored_[group];  // boxes often stay as they are from level to level
        if (!(last.box == boxes[group])) last = {boxes[group], score(boxes[group])};
        best = std::max(best, last.score);
      }
    });
  }

  template <class Search>
  static void best_of_flood(double* result, const Search& search) {
    LevelMaximum<double> best(-1.0);
    search(best);
    std::copy_n(best.settle(), kLevels, result);
  }

  // The inverted map inside a frame of the highest level: the outside. The background is
  // 4-connected.
  void frame_inverted() {
    const int32_t height = map_.height(), width = map_.width();
    inverted_.resize(height + 2, width + 2);
    std::fill_n(inverted_.row(0), width + 2, uint8_t{255});
    std::fill_n(inverted_.row(height + 1), width + 2, uint8_t{255});
    for (int32_t y = 0; y < height; ++y) {
      const uint8_t* from = map_.row(y);
      uint8_t* row = inverted_.row(y + 1);
      row[0] = row[width + 1] = 255;
      for (int32_t x = 0; x < width; ++x) row[x + 1] = static_cast<uint8_t>(255 - from[x]);
    }
  }

  // Raises every pixel to the lowest level at which it sees the outside.
  void fill_basins() {
    filled_.assign(basins_.count(), 255);  // by basin, where it meets the outside
    basins_.descend([&](int level) {
      for (int32_t basin = 0; basin < basins_.count(); ++basin) {
        if (basins_.group(basin) != kFrame) continue;
        filled_[basin] = std::min(filled_[basin], static_cast<uint8_t>(255 - level));
      }
    });
    basins_.each_segment([&](int32_t y, const Basins::Segment& segment) {
      const uint8_t least = filled_[segment.basin];
      if (least == 0) return;  // the frame's own, among them the rows that are all frame
      uint8_t* row = map_.row(y - 1);
      const int32_t begin = std::max(segment.begin - 1, 0);
      const int32_t end = std::min(segment.end - 1, map_.width());
      for (int32_t x = begin; x < end; ++x) row[x] = std::max(row[x], least);
    });
  }

  struct Scored {
    Box box;
    double score;
  };

  Plane map_, inverted_;
  Basins basins_;
  Flood flood_;
  std::vector<uint8_t> filled_;  // by basin
  std::vector<Scored> scored_;  // by group
};

}  // namespace wsfast::levels
