// What OpenCV's findContours and contourArea say of {u8 > L}, for all 256 levels L at once.
//
// contourArea is the area of the polygon through the centres of the border pixels: twice that area
// is, over the 2 x 2 quads of the component with its holes filled, those with three members plus
// twice those with four. Filling the holes of the map itself, in grey levels, fills those of every
// level; a component inside a hole is smaller than the one around it and never wins.
#pragma once

#include <array>

#include "levels_tree.h"

namespace wsfast::levels {

// Workspace of one thread: trees of one map after the other.
class Contours {
 public:
  // The map as 8-bit levels, `level(i)` for pixel i in raster order.
  template <class Level>
  void read(int32_t height, int32_t width, const Level& level) {
    map_.resize(height, width);
    for (int32_t y = 0; y < height; ++y) {
      uint8_t* row = map_.row(y);
      for (int32_t x = 0; x < width; ++x) row[x] = level(int64_t{y} * width + x);
    }
  }

  // The largest contour at each level: its box and twice its area, -1 where there is none. The
  // first of equals in OpenCV's order is the one whose first pixel comes last in raster order.
  void largest(int32_t* boxes, int32_t* area2) {
    fill_holes();
    tree_.build<8, true>(map_);
    LevelMaximum<Largest> best(Largest{-1, -1, -1});
    for (const int32_t node : tree_.nodes()) {
      const Region& region = tree_.region(node);
      best.offer(component_range(tree_.level(node), tree_.level(tree_.parent(node))),
                 {region.area2, region.first, node});
    }
    const Largest* at = best.settle();
    for (int level = 0; level < kLevels; ++level) {
      const int32_t node = at[level].node;
      const Box box = node < 0 ? Box{-1, -1, -1, -1} : tree_.box(node);
      const std::array<int32_t, 4> corners{box.x0, box.y0, box.x1, box.y1};
      std::copy(corners.begin(), corners.end(), boxes + 4 * level);
      area2[level] = at[level].area2;
    }
  }

  // The best of score(box) over the outer contours at each level, -1 where there is none.
  template <class Score>
  void best_component(const Score& score, double* result) {
    tree_.build<8, false>(map_);
    offer_all(result, [&](int32_t node, int level, int parent, LevelMaximum<double>& best) {
      best.offer(component_range(level, parent), score(tree_.box(node)));
    });
  }

  // The same over the contours of holes.
  template <class Score>
  void best_hole(const Score& score, double* result) {
    build_background();
    offer_all(result, [&](int32_t node, int level, int parent, LevelMaximum<double>& best) {
      if (outside_[node]) return;
      const Box hole = tree_.box(node);  // the frame shifts it by one pixel
      const Box inner{hole.x0 - 1, hole.y0 - 1, hole.x1 - 1, hole.y1 - 1};
      best.offer(hole_range(level, parent), score(around_hole(inner)));
    });
  }

 private:
  struct Largest {
    int32_t area2, first, node;

    bool operator<(const Largest& other) const {
      return area2 != other.area2 ? area2 < other.area2 : first < other.first;
    }
  };

  template <class Offer>
  void offer_all(double* result, const Offer& offer) {
    LevelMaximum<double> best(-1.0);
    for (const int32_t node : tree_.nodes()) {
      offer(node, tree_.level(node), tree_.level(tree_.parent(node)), best);
    }
    std::copy_n(best.settle(), kLevels, result);
  }

  // The tree of the inverted map inside a frame of the highest level: the frame's node and those
  // below it are the outside, all others are holes. The background is 4-connected.
  void build_background() {
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
    tree_.build<4, false>(inverted_);
    outside_.assign(tree_.id_count(), 0);
    for (int32_t node = tree_.node_of(tree_.row_ids(0)[0]); node != 0; node = tree_.parent(node)) {
      outside_[node] = 1;
    }
  }

  // Raises every pixel to the lowest level at which it sees the outside.
  void fill_holes() {
    build_background();
    const std::vector<int32_t>& nodes = tree_.nodes();
    filled_.assign(tree_.id_count(), 255);
    bool any_hole = false;
    for (size_t k = nodes.size(); k-- > 0;) {  // parents first
      const int32_t node = nodes[k];
      any_hole |= !outside_[node];
      filled_[node] = outside_[node] ? static_cast<uint8_t>(255 - tree_.level(node))
                                     : filled_[tree_.parent(node)];
    }
    if (!any_hole) return;
    for (int32_t y = 0; y < map_.height(); ++y) {
      const int32_t* ids = tree_.row_ids(y + 1) + 1;
      uint8_t* row = map_.row(y);
      for (int32_t x = 0; x < map_.width(); ++x) row[x] = filled_[tree_.node_of(ids[x])];
    }
  }

  Plane map_, inverted_;
  ComponentTree tree_;
  std::vector<uint8_t> outside_, filled_;  // by node
};

}  // namespace wsfast::levels
