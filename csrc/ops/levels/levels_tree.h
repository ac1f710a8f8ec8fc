// Component tree of an 8-bit image: one node for every connected component of {image >= level} at
// the highest level where it looks like that; its parent is the component it becomes part of.
//
// Row by row: the tree of one row comes from a stack, and is then merged with the tree of the rows
// above (Wilkinson et al., "Concurrent computation of attribute filters on shared memory parallel
// machines", 2008). Of the W links between two rows only those are followed that no better link
// beside them implies. No pixel is sorted, and at worst a link walks through 256 levels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "levels_math.h"
#include "levels_plane.h"

namespace wsfast::levels {

// Calls visit(x) for the non-zero bytes of a row, skipping eight zeros at a time.
template <class Visit>
void for_set_bytes(const uint8_t* row, int32_t width, const Visit& visit) {
  const auto word_at = [&](int32_t x) {
    uint64_t word;
    std::memcpy(&word, row + x, sizeof(word));
    return word;
  };
  for (int32_t x = 0; x < width; ++x) {
    while (x + 8 <= width && word_at(x) == 0) x += 8;
    if (x < width && row[x] != 0) visit(x);
  }
}

// What a node's component is, with everything above it.
struct Region {
  int32_t x0, x1, y1;  // columns [x0, x1), rows up to y1, exclusive
  int32_t first;       // first pixel in raster order, y * width + x

  void join(const Region& other) {
    x0 = std::min(x0, other.x0);
    x1 = std::max(x1, other.x1);
    y1 = std::max(y1, other.y1);
    first = std::min(first, other.first);
  }
};

class ComponentTree {
 public:
  static constexpr int32_t kRoot = 1;  // level 0, the whole image; node 0 ends every path

  // `connectivity` is 4 or 8.
  template <int connectivity>
  void build(const Plane& image) {
    reset(image);
    for (int32_t y = 0; y < image.height(); ++y) {
      grow_row(image.row(y), y);
      if (y > 0) link_rows<connectivity>(image.row(y - 1), image.row(y), y);
    }
    gather_regions();
  }

  // The nodes without the root, highest level first: children before their parents.
  const std::vector<int32_t>& nodes() const { return order_; }
  int level(int32_t node) const { return links_[node].level; }
  int32_t parent(int32_t node) const { return links_[node].parent; }
  const Region& region(int32_t node) const { return regions_[node]; }
  Box box(int32_t node) const {
    const Region& r = regions_[node];
    return {r.x0, r.first / width_, r.x1, r.y1};
  }

  // Node ids along a row of pixels; several ids may stand for one node.
  const int32_t* row_ids(int32_t y) const { return ids_.get() + int64_t{y} * (width_ + 1); }
  // The one id among them that nodes() lists.
  int32_t node_of(int32_t id) const {
    const Link& link = links_[id];
    return link.level == links_[link.parent].level ? link.parent : id;
  }
  int32_t id_count() const { return count_; }

 private:
  struct Link {
    int32_t parent, level;
  };

  void reset(const Plane& image) {
    width_ = image.width();
    const int64_t pixels = int64_t{image.height()} * image.stride();
    if (pixels > capacity_) {
      capacity_ = pixels;
      ids_.reset(new int32_t[pixels]);
      links_.reset(new Link[pixels + 2]);
      regions_.reset(new Region[pixels + 2]);
    }
    links_[0] = {0, -1};
    links_[kRoot] = {0, 0};
    regions_[kRoot] = {0, width_, image.height(), 0};
    count_ = 2;
    stronger_.resize(image.stride() + 1);
    straight_.resize(image.stride() + 1);
    wanted_.resize(image.stride());
  }

  int32_t open_node(int level, int32_t x) {
    const int32_t node = count_++;
    links_[node].level = level;
    regions_[node].x0 = x;
    return node;
  }

  // The tree of one row: a node for every run of pixels >= level.
  void grow_row(const uint8_t* row, int32_t y) {
    int32_t* ids = ids_.get() + int64_t{y} * (width_ + 1);
    int32_t stack[kLevels];
    int levels[kLevels];
    int top = 0;
    stack[0] = kRoot;
    levels[0] = 0;
    for (int32_t x = 0; x <= width_; ++x) {
      const int value = row[x];
      int32_t start = x;
      while (levels[top] > value) {
        const int32_t node = stack[top--];
        Region& region = regions_[node];
        start = region.x0;
        region.x1 = x;
        region.y1 = y + 1;
        region.first = y * width_ + start;
        if (levels[top] < value) {
          stack[++top] = open_node(value, start);
          levels[top] = value;
        }
        links_[node].parent = stack[top];
      }
      if (levels[top] < value) {
        stack[++top] = open_node(value, x);
        levels[top] = value;
      }
      ids[x] = stack[top];
    }
  }

  // The oldest id of a node; shortens the path there.
  int32_t oldest(int32_t id) {
    int32_t parent = links_[id].parent;
    while (links_[parent].level == links_[id].level) {
      const int32_t next = links_[parent].parent;
      if (links_[next].level == links_[parent].level) links_[id].parent = next;
      id = parent;
      parent = next;
    }
    return id;
  }

  // Makes one of the components of two touching pixels, at every level up to the lower of both.
  void connect(int32_t a, int32_t b) {
    a = oldest(a);
    b = oldest(b);
    while (a != b) {
      if (links_[a].level < links_[b].level) std::swap(a, b);
      const int32_t below = oldest(links_[a].parent);
      if (links_[a].level == links_[b].level) {
        const int32_t other = oldest(links_[b].parent);
        const int32_t parent = links_[below].level > links_[other].level ? below : other;
        if (a < b) std::swap(a, b);
        links_[b].parent = parent;
        links_[a].parent = b;
        a = below;
        b = other;
      } else if (links_[below].level >= links_[b].level) {
        links_[a].parent = below;
        a = below;
      } else {
        links_[a].parent = b;
        a = below;
      }
    }
  }

  // A link between two rows is as strong as its lower pixel. The four pixels at x and x + 1 have
  // one strongest link (with 4-connectivity: the straight one at x). It is implied by the column
  // beside it where that column's straight link is as strong and leads on to a link as strong or
  // stronger.
  template <int connectivity>
  void link_rows(const uint8_t* above, const uint8_t* row, int32_t y) {
    uint8_t* stronger = stronger_.data() + 1;  // [-1] is 0
    uint8_t* straight = straight_.data();
    uint8_t* wanted = wanted_.data();
    stronger[-1] = 0;
    straight[width_] = 0;
    for (int32_t x = 0; x < width_; ++x) straight[x] = std::min(above[x], row[x]);
    if (connectivity == 8) {
      for (int32_t x = 0; x < width_; ++x) {
        stronger[x] = std::min(std::max(above[x], above[x + 1]), std::max(row[x], row[x + 1]));
      }
    } else {
      std::memcpy(stronger, straight, width_);
    }
    for (int32_t x = 0; x < width_; ++x) {
      const bool right = stronger[x] <= straight[x + 1];
      const bool left = (stronger[x] <= straight[x]) & (stronger[x - 1] > straight[x]);
      wanted[x] = !(right | left);
    }
    const int32_t* ids = row_ids(y);
    const int32_t* ids_above = row_ids(y - 1);
    for_set_bytes(wanted, width_, [&](int32_t x) {
      const bool diagonal = connectivity == 8;
      connect(ids_above[x + (diagonal & (above[x + 1] > above[x]))],
              ids[x + (diagonal & (row[x + 1] > row[x]))]);
    });
  }

  // Every id's region goes to its node, every node's to its parent.
  void gather_regions() {
    int32_t start[kLevels + 1] = {};
    for (int32_t id = kRoot + 1; id < count_; ++id) {
      const int32_t node = oldest(id);
      if (node != id) {
        links_[id].parent = node;
        regions_[node].join(regions_[id]);
      } else {
        links_[id].parent = oldest(links_[id].parent);
        ++start[kLevels - 1 - links_[id].level + 1];
      }
    }
    for (int k = 0; k < kLevels; ++k) start[k + 1] += start[k];
    order_.resize(start[kLevels]);
    for (int32_t id = kRoot + 1; id < count_; ++id) {
      if (node_of(id) == id) order_[start[kLevels - 1 - links_[id].level]++] = id;
    }
    for (const int32_t node : order_) regions_[links_[node].parent].join(regions_[node]);
  }

  int32_t width_ = 0, count_ = 0;
  int64_t capacity_ = 0;
  std::unique_ptr<int32_t[]> ids_;
  std::unique_ptr<Link[]> links_;
  std::unique_ptr<Region[]> regions_;
  std::vector<int32_t> order_;
  std::vector<uint8_t> stronger_, straight_, wanted_;  // of the links between two rows
};

}  // namespace wsfast::levels
