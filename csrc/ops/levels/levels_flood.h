// Contours at every level of a map of any roughness, pixel by pixel: pixels join their neighbours
// from the highest level down, in one union-find. Linear in pixels for any map; levels_basins.h is
// faster where a map is smooth.
#pragma once

#include <array>
#include <cstring>
#include <vector>

#include "levels_math.h"
#include "levels_plane.h"

namespace wsfast::levels {

// What a pixel meets when it appears, by which of its 8 neighbours are there (bit 0 is the upper
// left one, then clockwise): one neighbour of every group that touches around it, and how many of
// its four quads of 2 x 2 pixels have two or three members already.
struct Ring {
  uint8_t groups, quads;
  uint8_t neighbour[4];
};

constexpr Ring make_ring(int mask, int connectivity) {
  const auto has = [mask](int place) { return (mask >> (place & 7) & 1) != 0; };
  int group[8] = {0, 1, 2, 3, 4, 5, 6, 7};
  const auto join = [&](int a, int b) {
    if (!has(a) || !has(b)) return;
    const int from = group[a & 7], to = group[b & 7];
    for (int& one : group) one = one == from ? to : one;
  };
  for (int place = 0; place < 8; ++place) join(place, place + 1);
  for (int side = 1; side < 8 && connectivity == 8; side += 2) join(side, side + 2);
  Ring ring{};
  for (int place = connectivity == 4; place < 8; place += connectivity == 4 ? 2 : 1) {
    bool listed = !has(place);
    for (int k = 0; k < ring.groups; ++k) listed |= group[ring.neighbour[k]] == group[place];
    if (!listed) ring.neighbour[ring.groups++] = place;
  }
  for (int side = 1; side < 8; side += 2) {
    ring.quads += has(side) + has(side + 1) + has(side + 2) >= 2;
  }
  return ring;
}

template <int connectivity>
inline constexpr std::array<Ring, 256> kRings = [] {
  std::array<Ring, 256> rings{};
  for (int mask = 0; mask < 256; ++mask) rings[mask] = make_ring(mask, connectivity);
  return rings;
}();

// Workspace of one thread: one map after the other.
class Flood {
 public:
  // Calls write(level, box, area2) for the largest contour of {map > level} with its holes filled,
  // for all levels; kNoBox and -1 where there is none. Of equals the one whose first pixel comes
  // last in raster order is the largest.
  template <class Write>
  void largest(const Plane& map, const Write& write) {
    load(map, 0);
    fill_holes();
    begin(0);
    int32_t best = -1;
    write(kLevels - 1, kNoBox, -1);
    for (int level = kLevels - 1; level > 0; --level) {
      grown_.clear();
      add_pixels<8>(level, [this](int32_t component) { grown_.push_back(component); });
      best = best_after(best);
      write(level - 1, best < 0 ? kNoBox : box(best), best < 0 ? -1 : components_[best].area2);
    }
  }

  // Calls offer(range, box) for the components of {map > level} and the levels at which each has
  // that box.
  template <class Offer>
  void components(const Plane& map, const Offer& offer) {
    load(map, 0);
    begin(0);
    for (int level = kLevels - 1; level > 0; --level) {
      add_pixels<8>(level, [&](int32_t component) {
        const Component& c = components_[component];
        if (c.level > level) offer(component_range(c.level, level), box(component));
      });
    }
    const auto count = static_cast<int32_t>(components_.size());
    for (int32_t component = 0; component < count; ++component) {
      const Component& c = components_[component];
      if (c.parent == component) offer(component_range(c.level, 0), box(component));
    }
  }

  // The same for the holes: 4-connected components of {map <= level} that do not reach the
  // outside, which is the first component and takes in every other in the end.
  template <class Offer>
  void holes(const Plane& map, const Offer& offer) {
    load(map, 255);
    begin(1);
    std::fill(link_.begin(), link_.end(), 0);
    components_.push_back({});
    for (int level = kLevels - 1; level >= 0; --level) {
      add_pixels<4>(level, [&](int32_t component) {
        const Component& c = components_[component];
        if (component > 0 && c.level > level) offer(hole_range(c.level, level), box(component));
      });
    }
  }

 private:
  struct Component {
    int32_t parent, area2;
    int32_t first;       // pixel in raster order
    int32_t x0, x1, y1;  // columns [x0, x1), rows up to y1, exclusive
    int32_t level;       // at which it last grew

    // Whether it comes before in OpenCV's order of contours by size.
    bool smaller(const Component& other) const {
      return area2 != other.area2 ? area2 < other.area2 : first < other.first;
    }
  };

  // The map, or 255 minus it, inside a frame of one pixel.
  void load(const Plane& map, uint8_t inverted) {
    height_ = map.height();
    width_ = map.width();
    stride_ = width_ + 2;
    const size_t pixels = size_t{1} * stride_ * (height_ + 2);
    map_.assign(pixels, 0);
    there_.assign(pixels, 1);
    link_.resize(pixels);
    order_.resize(size_t{1} * width_ * height_);
    for (int32_t y = 0; y < height_; ++y) {
      const int64_t at = int64_t{y + 1} * stride_ + 1;
      const uint8_t* const row = map.row(y);
      for (int32_t x = 0; x < width_; ++x) map_[at + x] = row[x] ^ inverted;
      std::memset(there_.data() + at, 0, width_);
    }
    const int32_t s = stride_;
    around_ = {-s - 1, -s, -s + 1, 1, s + 1, s, s - 1, -1};
  }

  // Raises every pixel to the lowest level at which it sees the outside: the border's pixels do at
  // their own level, and the lowest level reached hands on to its 4 neighbours first.
  void fill_holes() {
    constexpr int32_t none = -1;
    std::array<int32_t, kLevels> last;  // pixel reached at each level; link_ leads to earlier ones
    last.fill(none);
    const auto reach = [&](int32_t pixel, int level) {
      if (there_[pixel]) return;
      there_[pixel] = 1;
      const int reached = std::max<int>(map_[pixel], level);
      map_[pixel] = static_cast<uint8_t>(reached);
      link_[pixel] = last[reached];
      last[reached] = pixel;
    };
    for (int32_t x = 1; x <= width_; ++x) {
      reach(stride_ + x, 0);
      reach(height_ * stride_ + x, 0);
    }
    for (int32_t y = 1; y <= height_; ++y) {
      reach(y * stride_ + 1, 0);
      reach(y * stride_ + width_, 0);
    }
    for (int level = 0; level < kLevels; ++level) {
      while (last[level] != none) {
        const int32_t pixel = last[level];
        last[level] = link_[pixel];
        for (int side = 1; side < 8; side += 2) reach(pixel + around_[side], level);
      }
    }
  }

  // Nothing is there yet but, where `frame` is 1, the frame.
  void begin(uint8_t frame) {
    sort_pixels();
    components_.clear();
    std::fill(there_.begin(), there_.end(), frame);
    for (int32_t y = 1; frame == 1 && y <= height_; ++y) {
      std::memset(there_.data() + int64_t{y} * stride_ + 1, 0, width_);
    }
  }

  // Pixels by level, each level's in raster order: order_[start_[level]] to start_[level + 1].
  void sort_pixels() {
    start_.fill(0);
    for (int32_t y = 1; y <= height_; ++y) {
      const uint8_t* row = map_.data() + int64_t{y} * stride_;
      for (int32_t x = 1; x <= width_; ++x) ++start_[row[x] + 1];
    }
    for (int level = 0; level < kLevels; ++level) start_[level + 1] += start_[level];
    std::array<int32_t, kLevels> next;
    std::copy_n(start_.begin(), kLevels, next.begin());
    for (int32_t y = 1; y <= height_; ++y) {
      const uint8_t* row = map_.data() + int64_t{y} * stride_;
      for (int32_t x = 1; x <= width_; ++x) order_[next[row[x]]++] = y * stride_ + x;
    }
  }

  // Adds the pixels of a level. Calls change(component) once for every component that grows, before
  // it does, and for those that are new.
  template <int connectivity, class Change>
  void add_pixels(int level, const Change& change) {
    int32_t y = 0, row_end = stride_;
    for (int32_t k = start_[level]; k < start_[level + 1]; ++k) {
      const int32_t pixel = order_[k];
      for (; pixel >= row_end; row_end += stride_) ++y;
      link_[pixel] = add_pixel<connectivity>(pixel, pixel - (row_end - stride_), y, level, change);
    }
  }

  // The component that the pixel becomes part of.
  template <int connectivity, class Change>
  int32_t add_pixel(int32_t pixel, int32_t x, int32_t y, int level, const Change& change) {
    const uint8_t* const at = there_.data() + pixel;
    int mask = 0;
    for (int place = 0; place < 8; ++place) mask |= at[around_[place]] << place;
    there_[pixel] = 1;
    const Ring& ring = kRings<connectivity>[mask];
    if (ring.groups == 0) {
      const auto component = static_cast<int32_t>(components_.size());
      components_.push_back({component, 0, pixel, x, x + 1, y + 1, level});
      change(component);
      return component;
    }
    const auto touched = [&](int group) {
      const int32_t component = root(link_[pixel + around_[ring.neighbour[group]]]);
      if (components_[component].level == level) return component;
      change(component);
      components_[component].level = level;
      return component;
    };
    int32_t component = touched(0);
    for (int group = 1; group < ring.groups; ++group) component = unite(component, touched(group));
    Component& c = components_[component];
    c.area2 += ring.quads;
    c.first = std::min(c.first, pixel);
    c.x0 = std::min(c.x0, x);
    c.x1 = std::max(c.x1, x + 1);
    c.y1 = std::max(c.y1, y + 1);
    return component;
  }

  int32_t root(int32_t component) {
    while (components_[component].parent != component) {
      const int32_t above = components_[components_[component].parent].parent;
      components_[component].parent = above;
      component = above;
    }
    return component;
  }

  int32_t unite(int32_t a, int32_t b) {
    if (a == b) return a;
    if (b < a) std::swap(a, b);  // the older one is likely to be larger: paths stay short
    Component& to = components_[a];
    const Component& from = components_[b];
    components_[b].parent = a;
    to.area2 += from.area2;
    to.first = std::min(to.first, from.first);
    to.x0 = std::min(to.x0, from.x0);
    to.x1 = std::max(to.x1, from.x1);
    to.y1 = std::max(to.y1, from.y1);
    return a;
  }

  // The largest component, given the largest of the level above; grown_ are those that grew since. A
  // component that did not grow can only come in where the last largest fell back: it took in a
  // piece without area that begins before it.
  int32_t best_after(int32_t best) {
    const auto offer = [&](int32_t component) {
      if (components_[component].parent != component) return;
      if (best < 0 || components_[best].smaller(components_[component])) best = component;
    };
    if (best >= 0) {
      best = root(best);
      if (components_[best].smaller(last_best_)) {
        const auto count = static_cast<int32_t>(components_.size());
        for (int32_t component = 0; component < count; ++component) offer(component);
      }
    }
    for (const int32_t component : grown_) offer(component);
    if (best >= 0) last_best_ = components_[best];
    return best;
  }

  Box box(int32_t component) const {
    const Component& c = components_[component];
    return {c.x0 - 1, c.first / stride_ - 1, c.x1 - 1, c.y1 - 1};
  }

  int32_t height_ = 0, width_ = 0, stride_ = 0;
  std::array<int32_t, 8> around_{};  // to the neighbours, in the order of a ring
  std::array<int32_t, kLevels + 1> start_{};
  std::vector<uint8_t> map_, there_;
  std::vector<int32_t> order_, link_, grown_;  // link_: a pixel's component, once it is there
  std::vector<Component> components_;
  Component last_best_{};  // as it was
};

}  // namespace wsfast::levels
