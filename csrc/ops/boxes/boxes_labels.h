// Boxes and areas of the labels of an image that is labelled already. All of it integers, added up
// in any order: an image may be cut among threads at will.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../../core/torch_api.h"
#include "boxes_bands.h"

namespace wsfast::boxes {

struct LabelImage {
  const int32_t* labels;
  int32_t height, width;
};

// Boxes and areas of the labels 1..most, -1 where a label is absent.
struct LabelBoxes {
  int64_t most;
  int32_t* boxes;
  int32_t* areas;

  void clear() const {
    std::fill(boxes, boxes + most * 4, -1);
    std::fill(areas, areas + most, -1);
  }

  // Adds rows [begin, end) of an image, below those added before. The largest label in them.
  int32_t add_rows(const LabelImage& image, int32_t begin, int32_t end) const {
    int32_t largest = 0;
    const int32_t* row = image.labels + int64_t{begin} * image.width;
    for (int32_t y = begin; y < end; ++y, row += image.width) {
      for (int32_t x = 0, stop; x < image.width; x = stop) {
        const int32_t label = row[x];
        for (stop = x + 1; stop < image.width && row[stop] == label; ++stop) {
        }
        largest = std::max(largest, label);
        if (label >= 1 && label <= most) add_run(label, y, x, stop);
      }
    }
    return largest;
  }

  // Adds what was found in other rows of the same image.
  void add(const LabelBoxes& other) const {
    for (int64_t k = 0; k < most; ++k) {
      if (other.areas[k] < 0) continue;
      int32_t* const box = boxes + 4 * k;
      const int32_t* const from = other.boxes + 4 * k;
      const bool first = areas[k] < 0;
      box[0] = first ? from[0] : std::min(box[0], from[0]);
      box[1] = first ? from[1] : std::min(box[1], from[1]);
      box[2] = std::max(box[2], from[2]);
      box[3] = std::max(box[3], from[3]);
      areas[k] = (first ? 0 : areas[k]) + other.areas[k];
    }
  }

 private:
  void add_run(int32_t label, int32_t y, int32_t begin, int32_t end) const {
    int32_t* const box = boxes + (int64_t{label} - 1) * 4;
    int32_t& area = areas[label - 1];
    const bool first = area < 0;
    box[0] = first ? begin : std::min(box[0], begin);
    if (first) box[1] = y;
    box[2] = std::max(box[2], end);
    box[3] = y + 1;
    area = (first ? 0 : area) + end - begin;
  }
};

// The same for a large image, on several threads: each has boxes of its own, which are added up.
inline int32_t measure_label_bands(const LabelImage& image, const Bands& bands,
                                   const LabelBoxes& all) {
  int32_t largest = 0;
  std::mutex adding;
  share_tasks(bands.count(), 1, [&](Tasks tasks) {
    std::vector<int32_t> boxes(all.most * 4), areas(all.most);
    const LabelBoxes own{all.most, boxes.data(), areas.data()};
    own.clear();
    int32_t own_largest = 0;
    for (int64_t task; tasks.take(task);) {  // a thread's bands come from the top down
      const auto b = static_cast<int32_t>(task);
      const int32_t begin = bands.begin(b);
      own_largest = std::max(own_largest, own.add_rows(image, begin, begin + bands.rows(b)));
    }
    const std::lock_guard<std::mutex> lock(adding);
    largest = std::max(largest, own_largest);
    all.add(own);
  });
  return largest;
}

// Boxes (most, 4) and areas (most,) of one image; its largest label, 0 without any.
inline int32_t measure_labels(const LabelImage& image, int64_t most, int32_t* boxes,
                              int32_t* areas) {
  const LabelBoxes all{most, boxes, areas};
  all.clear();
  const Bands bands(image.height, image.width);
  // A table of so many labels per thread takes longer to add up than the pixels take to read.
  const bool too_many = most * thread_count() > int64_t{image.height} * image.width / 8;
  if (bands.count() == 1 || too_many) return all.add_rows(image, 0, image.height);
  return measure_label_bands(image, bands, all);
}

}  // namespace wsfast::boxes
