// Statistics of components, and the largest of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "boxes_math.h"

namespace wsfast::boxes {

struct Component {
  int32_t x0, y0, x1, y1, area;
  double sum;  // of the map inside
};

// Box, area and sum of every component; run_sum(run) is the map's sum over a run.
template <class Labeler, class RunSum>
void measure(const Labeler& labeler, int32_t count, const RunSum& run_sum,
             std::vector<Component>& components) {
  components.assign(count, {INT32_MAX, INT32_MAX, 0, 0, 0, 0.0});
  labeler.for_runs([&](const typename Labeler::Run& run) {
    Component& c = components[run.component];
    c.x0 = std::min(c.x0, run.begin);
    c.y0 = std::min(c.y0, run.y + (run.upper == 0));
    c.x1 = std::max(c.x1, run.end);
    c.y1 = std::max(c.y1, run.y + 1 + (run.lower > 0));
    c.area += run.upper + run.lower;
    c.sum += run_sum(run);
  });
}

// Keys of the components of at least min_area pixels, in the order of their numbers.
inline void find_keys(const std::vector<Component>& components, int64_t min_area,
                      std::vector<uint64_t>& keys) {
  keys.clear();
  for (size_t c = 0; c < components.size(); ++c) {
    if (components[c].area < min_area) continue;
    keys.push_back(size_key(components[c].area, static_cast<uint32_t>(c)));
  }
}

// Puts the `most` smallest keys, those of the largest components, first and in order.
template <class Key>
void sort_largest(std::vector<Key>& keys, int64_t most) {
  const auto kept = std::min<int64_t>(most, static_cast<int64_t>(keys.size()));
  std::nth_element(keys.begin(), keys.begin() + kept, keys.end());
  std::sort(keys.begin(), keys.begin() + kept);
}

}  // namespace wsfast::boxes
