// Connected components of one mask by runs: every row becomes runs of foreground pixels, runs that
// touch a run of the row above are united, and statistics are summed run by run. The mask is read
// once; labels are written only when asked for. Iterative, so no shape can overflow the stack.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

namespace wsfast::boxes {

struct Run {
  int32_t y, begin, end;  // columns [begin, end)
};

struct Component {
  int64_t area;
  int32_t x0, y0, x1, y1;
  double sum;  // of the map inside
};

class RunLabeler {
 public:
  // Finds the components of a mask, `foreground(y, x)` true inside; `connectivity` is 4 or 8.
  // `row_runs(y, emit)` calls emit(begin, end) for every run of row y, left to right.
  template <class RowRuns>
  void label(int32_t height, int connectivity, const RowRuns& row_runs) {
    runs_.clear();
    parent_.clear();
    const int32_t reach = connectivity == 8 ? 1 : 0;
    size_t above = 0, row_start = 0;
    for (int32_t y = 0; y < height; ++y) {
      const size_t above_end = runs_.size();
      above = row_start;
      row_start = above_end;
      row_runs(y, [&](int32_t begin, int32_t end) {
        const auto id = static_cast<int32_t>(runs_.size());
        runs_.push_back({y, begin, end});
        parent_.push_back(id);
        while (above < above_end && runs_[above].end + reach <= begin) ++above;
        for (size_t r = above; r < above_end && runs_[r].begin < end + reach; ++r) {
          unite(static_cast<int32_t>(r), id);
        }
      });
    }
    number_roots();
  }

  const std::vector<Run>& runs() const { return runs_; }
  // Component of a run, 0-based, in raster order of each component's first pixel.
  int32_t component_of(size_t run) const { return component_[run]; }
  int32_t count() const { return count_; }

  // Statistics of every component; `run_sum(run)` is the map's sum over a run.
  template <class RunSum>
  const std::vector<Component>& measure(const RunSum& run_sum) {
    components_.assign(count_, {0, INT32_MAX, INT32_MAX, 0, 0, 0.0});
    for (size_t r = 0; r < runs_.size(); ++r) {
      const Run& run = runs_[r];
      Component& c = components_[component_[r]];
      c.area += run.end - run.begin;
      c.x0 = std::min(c.x0, run.begin);
      c.x1 = std::max(c.x1, run.end);
      c.y0 = std::min(c.y0, run.y);
      c.y1 = std::max(c.y1, run.y + 1);
      c.sum += run_sum(run);
    }
    return components_;
  }

 private:
  int32_t find(int32_t id) {
    while (parent_[id] != id) {
      parent_[id] = parent_[parent_[id]];
      id = parent_[id];
    }
    return id;
  }

  // The smaller run, first in raster order, becomes the root.
  void unite(int32_t a, int32_t b) {
    a = find(a);
    b = find(b);
    if (a != b) parent_[std::max(a, b)] = std::min(a, b);
  }

  void number_roots() {
    component_.resize(runs_.size());
    count_ = 0;
    for (size_t r = 0; r < runs_.size(); ++r) {
      const int32_t root = find(static_cast<int32_t>(r));
      component_[r] = root == static_cast<int32_t>(r) ? count_++ : component_[root];
    }
  }

  std::vector<Run> runs_;
  std::vector<int32_t> parent_, component_;
  std::vector<Component> components_;
  int32_t count_ = 0;
};

// Calls emit(begin, end) for the runs of non-zero bytes of a row, skipping eight at a time.
template <class Emit>
void byte_runs(const uint8_t* row, int32_t width, const Emit& emit) {
  constexpr uint64_t ones = 0x0101010101010101ull;
  int32_t x = 0;
  const auto word_at = [&](int32_t at) {
    uint64_t word;
    std::memcpy(&word, row + at, sizeof(word));
    return word;
  };
  while (x < width) {
    while (x + 8 <= width && word_at(x) == 0) x += 8;
    while (x < width && row[x] == 0) ++x;
    if (x == width) return;
    const int32_t begin = x;
    while (x + 8 <= width && word_at(x) == ones) x += 8;
    while (x < width && row[x] != 0) ++x;
    emit(begin, x);
  }
}

}  // namespace wsfast::boxes
