// The components of a smooth 8-bit image at all its levels, by the slopes of its few local maxima.
//
// Every row is cut at its minima into segments that rise to a peak and fall again. A peak that
// touches something higher in the row above or below leads uphill; the segments that lead to one
// local maximum are its basin. What a basin holds at a level hangs together through its maximum, so
// a component at that level is a group of basins, joined where they touch at least that high. All
// per-pixel work is byte-wise minima and maxima along rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <vector>

#include "levels_math.h"
#include "levels_plane.h"
#include "levels_rows.h"

namespace wsfast::levels {

class Basins {
 public:
  // Columns [begin, end) of a row rise up to the plateau [peak, fall) of value `top`, then fall.
  struct Segment {
    int32_t begin, end, peak, fall;
    int32_t uphill, higher, basin;
    uint8_t top;
  };

  // False where the image has too many segments or maxima for this to pay. `connectivity` is 4 or
  // 8; the image must outlive the use of its basins.
  template <int connectivity>
  bool split(const Plane& image) {
    image_ = &image;
    if (!split_rows()) return false;
    for (int32_t y = 0; y < image.height(); ++y) explore<connectivity>(y);
    climb();
    if (!number_basins()) return false;
    collect_saddles<connectivity>();
    return true;
  }

  int32_t count() const { return count_; }
  // The group that a basin is in, named after its first basin; valid inside descend().
  int32_t group(int32_t basin) const { return group_[basin]; }

  // Calls visit(level) for the levels from 255 to 1, with the groups as they are at that level.
  template <class Visit>
  void descend(const Visit& visit) {
    group_.resize(count_);
    std::iota(group_.begin(), group_.end(), 0);
    for (int level = kLevels - 1; level > 0; --level) {
      for (int32_t at = saddle_at_[level]; at >= 0; at = saddles_[at].next) {
        join(group_[saddles_[at].a], group_[saddles_[at].b]);
      }
      visit(level);
    }
  }

  // Calls emit(y, segment) for every segment.
  template <class Emit>
  void each_segment(const Emit& emit) const {
    for (int32_t y = 0; y < image_->height(); ++y) each_segment_of(y, emit);
  }

  // Needed once before group_boxes().
  void measure_boxes() {
    const int32_t height = image_->height(), width = image_->width();
    column_top_.assign(int64_t{count_} * width, 0);
    row_top_.assign(int64_t{count_} * height, 0);
    const auto add_rows = [&](int32_t begin, int32_t end, uint8_t* column_top) {
      for (int32_t y = begin; y < end; ++y) add_tops(y, column_top);
    };
    const auto raise = [](uint8_t top, uint8_t& into) { into = std::max(into, top); };
    add_by_rows({0, height, width}, add_rows, raise, column_top_);
    boxes_.assign(int64_t{count_} * kLevels, kNowhere);
    for (int32_t basin = 0; basin < count_; ++basin) measure_box(basin);
  }

  // The box of every group at a level, by name; kNowhere for what is no group or lies lower.
  const std::vector<Box>& group_boxes(int level) {
    group_boxes_.assign(count_, kNowhere);
    for (int32_t basin = 0; basin < count_; ++basin) {
      const Box& from = boxes_[int64_t{basin} * kLevels + level];
      Box& box = group_boxes_[group_[basin]];
      box = {std::min(box.x0, from.x0), std::min(box.y0, from.y0), std::max(box.x1, from.x1),
             std::max(box.y1, from.y1)};
    }
    return group_boxes_;
  }
  static bool is_somewhere(const Box& box) { return box.x1 > 0; }

  // Needed once before group_areas().
  void measure_areas() {
    new_areas_.assign(int64_t{count_} * kLevels, {});
    areas_.assign(count_, 0);
    const auto add_rows = [this](int32_t begin, int32_t end, Lanes* areas) {
      std::vector<uint8_t> third(image_->width()), fourth(image_->width());
      for (int32_t y = begin; y < end; ++y) count_quads(y, third.data(), fourth.data(), areas);
    };
    const auto add = [](const Lanes& counts, Lanes& into) {
      for (size_t lane = 0; lane < counts.size(); ++lane) into[lane] += counts[lane];
    };
    add_by_rows({1, image_->height(), image_->width()}, add_rows, add, new_areas_);
  }

  // Twice the contour area of every group; call for each level as descend() comes to it.
  const std::vector<int32_t>& group_areas(int level) {
    group_areas_.assign(count_, 0);
    for (int32_t basin = 0; basin < count_; ++basin) {
      const Lanes& lanes = new_areas_[int64_t{basin} * kLevels + level];
      areas_[basin] += lanes[0] + lanes[1] + lanes[2] + lanes[3];
      group_areas_[group_[basin]] += areas_[basin];
    }
    return group_areas_;
  }

  // The first column of a group in row y, where it has a pixel at the level.
  int32_t first_column(int32_t group, int32_t y, int level) const {
    const uint8_t* row = image_->row(y);
    int32_t s = row_[y];
    while (segments_[s].top < level || group_[segments_[s].basin] != group) ++s;
    const Segment& segment = segments_[s];
    return static_cast<int32_t>(
        std::lower_bound(row + segment.begin, row + segment.peak, static_cast<uint8_t>(level)) -
        row);
  }

 private:
  static constexpr int32_t kMaxBasins = 128;
  static constexpr int32_t kPixelsPerSegment = 8;
  static constexpr Box kNowhere{INT32_MAX, INT32_MAX, 0, 0};

  // Neighbours often share a level: counts in four lanes do not wait for each other.
  using Lanes = std::array<int32_t, 4>;
  // Basins a and b touch; one of a list per level.
  struct Saddle {
    int32_t next, a, b;
  };

  // The first marked byte from `x` on; the byte at the row's end is marked.
  static int32_t next_mark(const std::vector<uint8_t>& marks, int32_t x) {
    for (;; x += 8) {
      uint64_t word;
      std::memcpy(&word, marks.data() + x, sizeof(word));
      if (word != 0) return x + __builtin_ctzll(word) / 8;
    }
  }

  bool split_rows() {
    const int32_t height = image_->height(), width = image_->width();
    rises_.assign(width + 8, 1);
    falls_.assign(width + 8, 1);
    segments_.clear();
    row_.assign(1, 0);
    for (int32_t y = 0; y < height; ++y) {
      split_row(image_->row(y), width);
      row_.push_back(static_cast<int32_t>(segments_.size()));
      if (row_.back() > (y + 8) * (int64_t{width} / kPixelsPerSegment + 2)) return false;
    }
    return true;
  }

  void split_row(const uint8_t* row, int32_t width) {
    uint8_t* rises = rises_.data();
    uint8_t* falls = falls_.data();
    for (int32_t x = 1; x < width; ++x) {
      rises[x] = row[x] > row[x - 1];
      falls[x] = row[x] < row[x - 1];
    }
    for (int32_t begin = 0; begin < width;) {
      const int32_t fall = next_mark(falls_, begin + 1);
      const int32_t end = fall < width ? next_mark(rises_, fall + 1) : width;
      int32_t peak = fall - 1;
      while (peak > begin && row[peak - 1] == row[peak]) --peak;
      const auto self = static_cast<int32_t>(segments_.size());
      segments_.push_back({begin, end, peak, fall, self, -1, -1, row[peak]});
      begin = end;
    }
  }

  int32_t segment_at(int32_t y, int32_t x) const {
    const auto begin = segments_.begin() + row_[y], end = segments_.begin() + row_[y + 1];
    const auto ends_after = [](int32_t column, const Segment& s) { return column < s.end; };
    return static_cast<int32_t>(std::upper_bound(begin, end, x, ends_after) - segments_.begin());
  }

  // Where a segment's way uphill has led to so far; shortens the way.
  int32_t summit(int32_t s) {
    while (segments_[s].uphill != s) {
      Segment& segment = segments_[s];
      segment.uphill = segments_[segment.uphill].uphill;
      s = segment.uphill;
    }
    return s;
  }

  // Peaks that touch at equal height become one plateau. Each plateau notes one higher neighbour:
  // two could be maxima that only the plateau connects.
  template <int connectivity>
  void explore(int32_t y) {
    constexpr int32_t reach = connectivity == 8 ? 1 : 0;
    for (int32_t s = row_[y]; s < row_[y + 1]; ++s) {
      const Segment& segment = segments_[s];
      const int32_t begin = std::max(segment.peak - reach, 0);
      const int32_t end = std::min(segment.fall + reach, image_->width());
      for (const int32_t to : {y - 1, y + 1}) {
        if (to < 0 || to >= image_->height()) continue;
        const uint8_t* row = image_->row(to);
        int32_t x = begin;
        while (x < end && row[x] < segment.top) ++x;
        if (x == end) continue;
        const int32_t other = segment_at(to, x);
        if (segments_[other].top > segment.top) {
          segments_[summit(s)].higher = other;
        } else {
          make_plateau(summit(s), summit(other));
        }
      }
    }
  }

  void make_plateau(int32_t a, int32_t b) {
    if (a == b) return;
    segments_[b].uphill = a;
    if (segments_[a].higher < 0) segments_[a].higher = segments_[b].higher;
  }

  void climb() {
    for (size_t s = 0; s < segments_.size(); ++s) {
      Segment& segment = segments_[s];
      const bool top_of_plateau = segment.uphill == static_cast<int32_t>(s);
      if (top_of_plateau && segment.higher >= 0) segment.uphill = segment.higher;
    }
  }

  // Numbers the basins in raster order of their first segments.
  bool number_basins() {
    count_ = 0;
    for (size_t s = 0; s < segments_.size(); ++s) {
      int32_t& basin = segments_[summit(static_cast<int32_t>(s))].basin;
      if (basin < 0) basin = count_++;
      segments_[s].basin = basin;
    }
    return count_ <= kMaxBasins;
  }

  template <int connectivity>
  void collect_saddles() {
    saddles_.clear();
    std::fill(saddle_at_, saddle_at_ + kLevels, -1);
    for (int32_t y = 0; y < image_->height(); ++y) {
      const uint8_t* row = image_->row(y);
      for (int32_t s = row_[y] + 1; s < row_[y + 1]; ++s) {
        add_saddle(row[segments_[s].begin - 1], segments_[s - 1].basin, segments_[s].basin);
      }
      if (y == 0) continue;
      const uint8_t* above = image_->row(y - 1);
      constexpr int32_t reach = connectivity == 8 ? 1 : 0;
      each_touching(y, reach, [&](const Segment& a, const Segment& b) {
        if (a.basin == b.basin) return;
        uint8_t highest = 0;
        for (int32_t step = -reach; step <= reach; ++step) {
          const int32_t begin = std::max(a.begin, b.begin - step);
          const int32_t end = std::min(a.end, b.end - step);
          for (int32_t x = begin; x < end; ++x) {
            highest = std::max(highest, std::min(above[x], row[x + step]));
          }
        }
        add_saddle(highest, a.basin, b.basin);
      });
    }
  }

  void add_saddle(int level, int32_t a, int32_t b) {
    if (a == b || level == 0) return;
    saddles_.push_back({saddle_at_[level], a, b});
    saddle_at_[level] = static_cast<int32_t>(saddles_.size()) - 1;
  }

  // Calls body(a, b) for segments a of row y - 1 and b of row y at most `reach` columns apart.
  template <class Body>
  void each_touching(int32_t y, int32_t reach, const Body& body) const {
    int32_t above = row_[y - 1];
    for (int32_t s = row_[y]; s < row_[y + 1]; ++s) {
      const Segment& segment = segments_[s];
      while (segments_[above].end + reach <= segment.begin) ++above;
      for (int32_t a = above; a < row_[y] && segments_[a].begin < segment.end + reach; ++a) {
        body(segments_[a], segment);
      }
    }
  }

  void join(int32_t a, int32_t b) {
    if (a == b) return;
    std::replace(group_.begin(), group_.end(), std::max(a, b), std::min(a, b));
  }

  template <class Emit>
  void each_segment_of(int32_t y, const Emit& emit) const {
    for (int32_t s = row_[y]; s < row_[y + 1]; ++s) emit(y, segments_[s]);
  }

  // What a row adds to the highest levels of its basins' columns, and of itself.
  void add_tops(int32_t y, uint8_t* column_tops) {
    const uint8_t* row = image_->row(y);
    each_segment_of(y, [&](int32_t, const Segment& segment) {
      uint8_t* column_top = column_tops + int64_t{segment.basin} * image_->width();
      for (int32_t x = segment.begin; x < segment.end; ++x) {
        column_top[x] = std::max(column_top[x], row[x]);
      }
      uint8_t& row_top = row_top_[int64_t{segment.basin} * image_->height() + y];
      row_top = std::max(row_top, segment.top);
    });
  }

  // The basin's box at each of its levels: one side after the other, from outside to inside.
  void measure_box(int32_t basin) {
    const int32_t height = image_->height(), width = image_->width();
    const uint8_t* columns = column_top_.data() + int64_t{basin} * width;
    const uint8_t* rows = row_top_.data() + int64_t{basin} * height;
    const int top = *std::max_element(rows, rows + height);
    Box* boxes = boxes_.data() + int64_t{basin} * kLevels;
    for (int32_t x = 0, level = 0; level < top; ++x) {
      while (level < columns[x]) boxes[++level].x0 = x;
    }
    for (int32_t x = width, level = 0; level < top; --x) {
      while (level < columns[x - 1]) boxes[++level].x1 = x;
    }
    for (int32_t y = 0, level = 0; level < top; ++y) {
      while (level < rows[y]) boxes[++level].y0 = y;
    }
    for (int32_t y = height, level = 0; level < top; --y) {
      while (level < rows[y - 1]) boxes[++level].y1 = y;
    }
  }

  // A quad of 2 x 2 pixels counts once where its third pixel appears and again at its fourth; the
  // higher of any two of its pixels is in that component.
  void count_quads(int32_t y, uint8_t* third, uint8_t* fourth, Lanes* all_areas) const {
    const int32_t width = image_->width();
    const uint8_t* above = image_->row(y - 1);
    const uint8_t* row = image_->row(y);
    for (int32_t x = 0; x + 1 < width; ++x) {
      const uint8_t low = std::min(above[x], above[x + 1]), low2 = std::min(row[x], row[x + 1]);
      const uint8_t high = std::max(above[x], above[x + 1]), high2 = std::max(row[x], row[x + 1]);
      fourth[x] = std::min(low, low2);
      third[x] = std::min(std::max(low, low2), std::min(high, high2));
    }
    each_touching(y, 0, [&](const Segment& a, const Segment& b) {
      const int32_t begin = std::max(a.begin, b.begin);
      const int32_t end = std::min({a.end, b.end, width - 1});
      Lanes* const areas_a = all_areas + int64_t{a.basin} * kLevels;
      Lanes* const areas_b = all_areas + int64_t{b.basin} * kLevels;
      for (int32_t x = begin; x < end; ++x) {
        Lanes* areas = above[x] >= row[x] ? areas_a : areas_b;
        ++areas[third[x]][x & 1];
        ++areas[fourth[x]][2 | (x & 1)];
      }
    });
  }

  const Plane* image_ = nullptr;
  int32_t count_ = 0;
  std::vector<Segment> segments_;
  std::vector<int32_t> row_;  // the first segment of each row, and their number
  std::vector<Saddle> saddles_;
  int32_t saddle_at_[kLevels];  // the head of each level's list
  std::vector<int32_t> group_;  // by basin, as all below; tables have a row per basin
  std::vector<uint8_t> column_top_, row_top_;
  std::vector<Box> boxes_, group_boxes_;
  std::vector<Lanes> new_areas_;
  std::vector<int32_t> areas_, group_areas_;
  std::vector<uint8_t> rises_, falls_;  // of one row
};

}  // namespace wsfast::levels
