// Schemas and CPU kernels of the boxes room: one image per task, so results do not depend on the
// number of threads.
#include <numeric>

#include "../../core/torch_api.h"
#include "boxes_math.h"
#include "boxes_runs.h"

namespace wsfast::boxes {
namespace {

struct Shape {
  int64_t images;
  int32_t height, width;

  int64_t pixels() const { return int64_t{height} * width; }
};

Shape shape_of(const char* op, const char* name, const Tensor& tensor) {
  check_rank(op, name, tensor, 3);
  WS_CHECK(tensor.size(1) < INT32_MAX && tensor.size(2) < INT32_MAX, "wsfast::", op, ": ", name,
           " must have H, W < 2^31");
  return {tensor.size(0), static_cast<int32_t>(tensor.size(1)),
          static_cast<int32_t>(tensor.size(2))};
}

// The mask's bytes; bool and uint8 masks are read as they are.
Tensor mask_bytes(const char* op, const Tensor& mask) {
  WS_CHECK(mask.scalar_type() == ScalarType::Bool || mask.scalar_type() == ScalarType::Byte,
           "wsfast::", op, ": mask must be bool or uint8");
  return as_contiguous(mask);
}

void label_mask(RunLabeler& labeler, const uint8_t* mask, const Shape& shape, int connectivity) {
  labeler.label(shape.height, connectivity, [&](int32_t y, const auto& emit) {
    byte_runs(mask + int64_t{y} * shape.width, shape.width, emit);
  });
}

std::tuple<Tensor, Tensor> connected_components_cpu(const Tensor& mask, int64_t connectivity) {
  const Shape shape = shape_of("connected_components", "mask", mask);
  const Tensor bytes = mask_bytes("connected_components", mask);
  Tensor labels = new_tensor(mask, {shape.images, shape.height, shape.width}, ScalarType::Int);
  Tensor counts = new_tensor(mask, {shape.images}, ScalarType::Int);
  parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
    RunLabeler labeler;
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = n * shape.pixels();
      label_mask(labeler, read_ptr<uint8_t>(bytes) + at, shape, static_cast<int>(connectivity));
      int32_t* out = write_ptr<int32_t>(labels) + at;
      std::fill(out, out + shape.pixels(), 0);
      for (size_t r = 0; r < labeler.runs().size(); ++r) {
        const Run& run = labeler.runs()[r];
        int32_t* row = out + int64_t{run.y} * shape.width;
        std::fill(row + run.begin, row + run.end, labeler.component_of(r) + 1);
      }
      write_ptr<int32_t>(counts)[n] = labeler.count();
    }
  });
  return {labels, counts};
}

// The largest components first, equals in raster order; at most `most`.
std::vector<int32_t> largest(const std::vector<Component>& components, int64_t min_area,
                             int64_t most, int32_t* count) {
  std::vector<int32_t> order;
  for (size_t c = 0; c < components.size(); ++c) {
    if (components[c].area >= min_area) order.push_back(static_cast<int32_t>(c));
  }
  *count = static_cast<int32_t>(order.size());
  const auto kept = std::min<int64_t>(most, *count);
  std::partial_sort(order.begin(), order.begin() + kept, order.end(), [&](int32_t a, int32_t b) {
    const int64_t first = components[a].area, second = components[b].area;
    return first != second ? first > second : a < b;
  });
  order.resize(kept);
  return order;
}

// Where the boxes of a batch are written; `scores` may be null.
struct BoxOutput {
  int32_t* boxes;
  float* scores;
  int32_t* areas;
  int32_t* counts;
  int64_t max_boxes, min_area;

  void write(int64_t image, const std::vector<Component>& components) const {
    const std::vector<int32_t> order = largest(components, min_area, max_boxes, counts + image);
    for (int64_t k = 0; k < max_boxes; ++k) {
      int32_t* box = boxes + (image * max_boxes + k) * 4;
      const int64_t at = image * max_boxes + k;
      if (k >= static_cast<int64_t>(order.size())) {
        std::fill(box, box + 4, -1);
        areas[at] = -1;
        if (scores != nullptr) scores[at] = -1.0f;
        continue;
      }
      const Component& c = components[order[k]];
      box[0] = c.x0;
      box[1] = c.y0;
      box[2] = c.x1;
      box[3] = c.y1;
      areas[at] = static_cast<int32_t>(c.area);
      if (scores != nullptr) scores[at] = static_cast<float>(c.sum / static_cast<double>(c.area));
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> component_boxes_cpu(const Tensor& mask, int64_t max_boxes,
                                                       int64_t connectivity, int64_t min_area) {
  const Shape shape = shape_of("component_boxes", "mask", mask);
  const Tensor bytes = mask_bytes("component_boxes", mask);
  Tensor boxes = new_tensor(mask, {shape.images, max_boxes, 4}, ScalarType::Int);
  Tensor areas = new_tensor(mask, {shape.images, max_boxes}, ScalarType::Int);
  Tensor counts = new_tensor(mask, {shape.images}, ScalarType::Int);
  const BoxOutput out{write_ptr<int32_t>(boxes), nullptr, write_ptr<int32_t>(areas),
                      write_ptr<int32_t>(counts), max_boxes, min_area};
  parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
    RunLabeler labeler;
    for (int64_t n = begin; n < end; ++n) {
      label_mask(labeler, read_ptr<uint8_t>(bytes) + n * shape.pixels(), shape,
                 static_cast<int>(connectivity));
      out.write(n, labeler.measure([](const Run&) { return 0.0; }));
    }
  });
  return {boxes, areas, counts};
}

// Row by row, {map >= threshold} as bytes and then as runs.
template <class T>
void label_map(RunLabeler& labeler, const T* map, acc_t<T> threshold, const Shape& shape,
               int connectivity, std::vector<uint8_t>& row_mask) {
  row_mask.resize(shape.width);
  labeler.label(shape.height, connectivity, [&](int32_t y, const auto& emit) {
    const T* row = map + int64_t{y} * shape.width;
    for (int32_t x = 0; x < shape.width; ++x) row_mask[x] = to_acc(row[x]) >= threshold;
    byte_runs(row_mask.data(), shape.width, emit);
  });
}

template <class T>
bool all_numbers(const T* map, int64_t pixels) {
  bool numbers = true;
  for (int64_t i = 0; i < pixels; ++i) {
    const auto x = to_acc(map[i]);
    numbers &= x == x;
  }
  return numbers;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cam_boxes_cpu(const Tensor& cams,
                                                                 const Tensor& thresholds,
                                                                 int64_t max_boxes,
                                                                 int64_t connectivity,
                                                                 int64_t min_area) {
  const Shape shape = shape_of("cam_boxes", "cams", cams);
  WS_CHECK(thresholds.dim() == 1 && thresholds.size(0) == shape.images &&
               thresholds.scalar_type() == accumulate_dtype(cams.scalar_type()),
           "wsfast::cam_boxes: thresholds must hold one accumulator value per map");
  const Tensor maps = as_contiguous(cams), limits = as_contiguous(thresholds);
  Tensor boxes = new_tensor(cams, {shape.images, max_boxes, 4}, ScalarType::Int);
  Tensor scores = new_tensor(cams, {shape.images, max_boxes}, ScalarType::Float);
  Tensor areas = new_tensor(cams, {shape.images, max_boxes}, ScalarType::Int);
  Tensor counts = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  const BoxOutput out{write_ptr<int32_t>(boxes), write_ptr<float>(scores),
                      write_ptr<int32_t>(areas), write_ptr<int32_t>(counts), max_boxes, min_area};
  dispatch_floating(cams.scalar_type(), "cam_boxes", [&]<class T>() {
    parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
      RunLabeler labeler;
      std::vector<uint8_t> row_mask;
      for (int64_t n = begin; n < end; ++n) {
        const T* map = read_ptr<T>(maps) + n * shape.pixels();
        label_map(labeler, map, read_ptr<acc_t<T>>(limits)[n], shape,
                  static_cast<int>(connectivity), row_mask);
        out.write(n, labeler.measure([&](const Run& run) {
          const T* row = map + int64_t{run.y} * shape.width;
          double sum = 0.0;
          for (int32_t x = run.begin; x < run.end; ++x) sum += to_acc(row[x]);
          return sum;
        }));
        write_ptr<bool>(valid)[n] = all_numbers(map, shape.pixels());
      }
    });
  });
  return {boxes, scores, areas, counts, valid};
}

std::tuple<Tensor, Tensor> otsu_level_cpu(const Tensor& cams, int64_t repeat) {
  const Shape shape = shape_of("otsu_level", "cams", cams);
  const Tensor maps = as_contiguous(cams);
  Tensor levels = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "otsu_level", [&]<class T>() {
    parallel_for(0, shape.images, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const T* map = read_ptr<T>(maps) + n * shape.pixels();
        int64_t lanes[4][kLevels] = {};  // neighbours often share a level: four tables, no stall
        bool numbers = true;
        for (int64_t i = 0; i < shape.pixels(); ++i) {
          const auto x = to_acc(map[i]);
          numbers &= x == x;
          ++lanes[i & 3][level_of(x)];
        }
        for (int level = 0; level < kLevels; ++level) {
          lanes[0][level] += lanes[1][level] + lanes[2][level] + lanes[3][level];
        }
        write_ptr<int32_t>(levels)[n] = repeated_otsu_level(lanes[0], repeat);
        write_ptr<bool>(valid)[n] = numbers;
      }
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
  m.def("otsu_level(Tensor cams, int repeat) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("connected_components", TORCH_BOX(&wsfast::boxes::connected_components_cpu));
  m.impl("component_boxes", TORCH_BOX(&wsfast::boxes::component_boxes_cpu));
  m.impl("cam_boxes", TORCH_BOX(&wsfast::boxes::cam_boxes_cpu));
  m.impl("otsu_level", TORCH_BOX(&wsfast::boxes::otsu_level_cpu));
}
