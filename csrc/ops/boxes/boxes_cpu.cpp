// Schemas and CPU kernels of the boxes room: one image per task, so results do not depend on the
// number of threads.
#include <algorithm>
#include <bit>
#include <vector>

#include "boxes_args.h"
#include "boxes_components.h"
#include "boxes_math.h"

#define WS_SIMD_BODY "../ops/boxes/boxes_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::boxes {
namespace {

WS_DEFINE_DISPATCH_SIMD(Passes)

// Images per task at least: a thread is worth waking for this many pixels.
int64_t grain(const Shape& shape) {
  return std::max<int64_t>(1, 16384 / std::max<int64_t>(1, shape.pixels()));
}

template <class Passes>
int32_t label_mask(typename Passes::Labeler& labeler, const uint8_t* mask, const Shape& shape) {
  return labeler.label([&](int32_t y, uint64_t* words) {
    Passes::nonzero_bits(mask + int64_t{y} * shape.width, shape.width, words);
  });
}

// ---- labels -------------------------------------------------------------------------------------

template <class Labeler>
void write_labels(const Labeler& labeler, const Shape& shape, int32_t* labels) {
  std::fill(labels, labels + shape.pixels(), 0);
  labeler.for_runs([&](const typename Labeler::Run& run) {
    labeler.paint(run, run.component + 1, labels);
  });
}

std::tuple<Tensor, Tensor> connected_components_cpu(const Tensor& mask, int64_t connectivity) {
  const Shape shape = shape_of("connected_components", "mask", mask);
  check_connectivity("connected_components", connectivity);
  const Tensor bytes = mask_bytes("connected_components", mask);
  Tensor labels = new_tensor(mask, {shape.images, shape.height, shape.width}, ScalarType::Int);
  Tensor counts = new_tensor(mask, {shape.images}, ScalarType::Int);
  dispatch_simd([&]<class Passes>() {
    share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
      typename Passes::Labeler labeler(shape.height, shape.width, static_cast<int>(connectivity));
      for (int64_t n; tasks.take(n);) {
        const int64_t at = n * shape.pixels();
        write_ptr<int32_t>(counts)[n] =
            label_mask<Passes>(labeler, read_ptr<uint8_t>(bytes) + at, shape);
        write_labels(labeler, shape, write_ptr<int32_t>(labels) + at);
      }
    });
  });
  return {labels, counts};
}

// ---- boxes --------------------------------------------------------------------------------------

// Finds the boxes of one image after the other and writes them into the batch.
template <class Labeler>
class BoxWriter {
 public:
  BoxWriter(const BoxTensors& out, const Shape& shape, const BoxOptions& options)
      : labeler_(shape.height, shape.width, static_cast<int>(options.connectivity)),
        options_(options),
        boxes_(write_ptr<int32_t>(out.boxes)),
        scores_(write_ptr<float>(out.scores)),
        areas_(write_ptr<int32_t>(out.areas)),
        counts_(write_ptr<int32_t>(out.counts)) {}

  Labeler& labeler() { return labeler_; }

  // The labeler has found `count` components of the image.
  template <class RunSum>
  void write(int64_t image, int32_t count, const RunSum& run_sum) {
    measure(labeler_, count, run_sum, components_);
    find_largest(components_, options_.min_area, options_.max_boxes, keys_);
    counts_[image] = static_cast<int32_t>(keys_.size());
    const int64_t first = image * options_.max_boxes;
    const auto found = std::min<int64_t>(options_.max_boxes, static_cast<int64_t>(keys_.size()));
    for (int64_t k = 0; k < found; ++k) {
      write_slot(first + k, components_[component_of(keys_[k])]);
    }
    std::fill(boxes_ + (first + found) * 4, boxes_ + (first + options_.max_boxes) * 4, -1);
    std::fill(areas_ + first + found, areas_ + first + options_.max_boxes, -1);
    std::fill(scores_ + first + found, scores_ + first + options_.max_boxes, -1.0f);
  }

 private:
  void write_slot(int64_t slot, const Component& c) {
    int32_t* box = boxes_ + slot * 4;
    box[0] = c.x0;
    box[1] = c.y0;
    box[2] = c.x1;
    box[3] = c.y1;
    areas_[slot] = c.area;
    scores_[slot] = static_cast<float>(c.sum / c.area);
  }

  Labeler labeler_;
  const BoxOptions& options_;
  int32_t* boxes_;
  float* scores_;
  int32_t* areas_;
  int32_t* counts_;
  std::vector<Component> components_;
  std::vector<uint64_t> keys_;
};

std::tuple<Tensor, Tensor, Tensor> component_boxes_cpu(const Tensor& mask, int64_t max_boxes,
                                                       int64_t connectivity, int64_t min_area) {
  const Shape shape = shape_of("component_boxes", "mask", mask);
  const BoxOptions options = box_options("component_boxes", max_boxes, connectivity, min_area);
  const Tensor bytes = mask_bytes("component_boxes", mask);
  const BoxTensors out(mask, shape, max_boxes);
  dispatch_simd([&]<class Passes>() {
    share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
      BoxWriter<typename Passes::Labeler> writer(out, shape, options);
      for (int64_t n; tasks.take(n);) {
        const uint8_t* image = read_ptr<uint8_t>(bytes) + n * shape.pixels();
        const int32_t count = label_mask<Passes>(writer.labeler(), image, shape);
        writer.write(n, count, [](const auto&) { return 0.0; });
      }
    });
  });
  return {out.boxes, out.areas, out.counts};
}

// {map >= threshold} as components. False if the map holds NaN.
template <class Passes, class T>
bool box_map(BoxWriter<typename Passes::Labeler>& writer, int64_t image, const T* map,
             acc_t<T> threshold, const Shape& shape) {
  bool numbers = true;
  const auto row = [&](int32_t y) { return map + int64_t{y} * shape.width; };
  const int32_t count = writer.labeler().label([&](int32_t y, uint64_t* words) {
    numbers &= Passes::threshold_bits(row(y), shape.width, threshold, words);
  });
  writer.write(image, count, [&](const auto& run) {
    double sum = 0;
    writer.labeler().for_stretches(run, [&](int32_t y, int32_t begin, int32_t end) {
      sum += Passes::sum(row(y) + begin, end - begin);
    });
    return sum;
  });
  return numbers;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cam_boxes_cpu(const Tensor& cams,
                                                                 const Tensor& thresholds,
                                                                 int64_t max_boxes,
                                                                 int64_t connectivity,
                                                                 int64_t min_area) {
  const Shape shape = shape_of("cam_boxes", "cams", cams);
  const BoxOptions options = box_options("cam_boxes", max_boxes, connectivity, min_area);
  check_thresholds(cams, thresholds);
  const Tensor maps = as_contiguous(cams), limits = as_contiguous(thresholds);
  const BoxTensors out(cams, shape, max_boxes);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "cam_boxes", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
        BoxWriter<typename Passes::Labeler> writer(out, shape, options);
        for (int64_t n; tasks.take(n);) {
          const T* map = read_ptr<T>(maps) + n * shape.pixels();
          write_ptr<bool>(valid)[n] =
              box_map<Passes>(writer, n, map, read_ptr<acc_t<T>>(limits)[n], shape);
        }
      });
    });
  });
  return {out.boxes, out.scores, out.areas, out.counts, valid};
}

// ---- boxes of labels ----------------------------------------------------------------------------

// Boxes and areas of the labels 1..most of one image; its largest label.
int32_t measure_labels(const int32_t* labels, const Shape& shape, int64_t most, int32_t* boxes,
                       int32_t* areas) {
  std::fill(boxes, boxes + most * 4, -1);
  std::fill(areas, areas + most, -1);
  int32_t largest = 0;
  for (int32_t y = 0; y < shape.height; ++y, labels += shape.width) {
    for (int32_t x = 0, end; x < shape.width; x = end) {
      const int32_t label = labels[x];
      for (end = x + 1; end < shape.width && labels[end] == label; ++end) {
      }
      largest = std::max(largest, label);
      if (label < 1 || label > most) continue;
      int32_t* const box = boxes + (int64_t{label} - 1) * 4;
      int32_t& area = areas[label - 1];
      const bool first = area < 0;
      box[0] = first ? x : std::min(box[0], x);
      if (first) box[1] = y;  // rows come from the top
      box[2] = std::max(box[2], end);
      box[3] = y + 1;
      area = (first ? 0 : area) + end - x;
    }
  }
  return largest;
}

std::tuple<Tensor, Tensor, Tensor> label_boxes_cpu(const Tensor& labels, int64_t max_labels) {
  const Shape shape = shape_of("label_boxes", "labels", labels);
  WS_CHECK(labels.scalar_type() == ScalarType::Int, "wsfast::label_boxes: labels must be int32");
  WS_CHECK(max_labels >= 1, "wsfast::label_boxes: max_labels must be at least 1, got ", max_labels);
  const Tensor images = as_contiguous(labels);
  const BoxTensors out(labels, shape, max_labels);
  share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
    for (int64_t n; tasks.take(n);) {
      write_ptr<int32_t>(out.counts)[n] =
          measure_labels(read_ptr<int32_t>(images) + n * shape.pixels(), shape, max_labels,
                         write_ptr<int32_t>(out.boxes) + n * max_labels * 4,
                         write_ptr<int32_t>(out.areas) + n * max_labels);
    }
  });
  return {out.boxes, out.areas, out.counts};
}

// ---- Otsu ---------------------------------------------------------------------------------------

// False if the map holds NaN.
template <class Passes, class T>
bool count_map(const T* map, int64_t pixels, int64_t* histogram) {
  uint32_t tables[Passes::kTables][kLevels] = {};
  const bool numbers = Passes::count_levels(map, pixels, tables);
  for (const auto& table : tables) {
    for (int level = 0; level < kLevels; ++level) histogram[level] += table[level];
  }
  return numbers;
}

std::tuple<Tensor, Tensor> otsu_level_cpu(const Tensor& cams, int64_t repeat) {
  const Shape shape = shape_of("otsu_level", "cams", cams);
  const Tensor maps = as_contiguous(cams);
  Tensor levels = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "otsu_level", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
        for (int64_t n; tasks.take(n);) {
          const T* map = read_ptr<T>(maps) + n * shape.pixels();
          int64_t histogram[kLevels] = {};
          write_ptr<bool>(valid)[n] = count_map<Passes>(map, shape.pixels(), histogram);
          write_ptr<int32_t>(levels)[n] = repeated_otsu_level(histogram, repeat);
        }
      });
    });
  });
  return {levels, valid};
}

}  // namespace
}  // namespace wsfast::boxes

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def("connected_components(Tensor mask, int connectivity) -> (Tensor, Tensor)");
  m.def(
      "component_boxes(Tensor mask, int max_boxes, int connectivity, int min_area)"
      " -> (Tensor, Tensor, Tensor)");
  m.def(
      "cam_boxes(Tensor cams, Tensor thresholds, int max_boxes, int connectivity, int min_area)"
      " -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("label_boxes(Tensor labels, int max_labels) -> (Tensor, Tensor, Tensor)");
  m.def("otsu_level(Tensor cams, int repeat) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("connected_components", TORCH_BOX(&wsfast::boxes::connected_components_cpu));
  m.impl("component_boxes", TORCH_BOX(&wsfast::boxes::component_boxes_cpu));
  m.impl("cam_boxes", TORCH_BOX(&wsfast::boxes::cam_boxes_cpu));
  m.impl("label_boxes", TORCH_BOX(&wsfast::boxes::label_boxes_cpu));
  m.impl("otsu_level", TORCH_BOX(&wsfast::boxes::otsu_level_cpu));
}
