// Schemas and CPU kernels of the levels room. A map is one thread's work, but for passes over its rows
// whose integers may be added up in any order: results do not depend on the number of threads.
#include <mutex>

#include "../../core/torch_api.h"
#include "levels_contours.h"
#include "levels_histogram.h"

namespace wsfast::levels {
namespace {

constexpr int64_t kMaxPixels = int64_t{1} << 30;  // twice the area of a map fits an int32

struct Shape {
  int64_t images;
  int32_t height, width;

  int64_t pixels() const { return int64_t{height} * width; }
  // Maps per task: several where a map is less work than waking a thread.
  int64_t grain() const { return 1 + (1 << 14) / pixels(); }
  // Tasks per map where a map can be cut anywhere.
  int64_t parts() const { return std::max<int64_t>(1, pixels() / kBandPixels); }
};

Shape shape_of(const char* op, const Tensor& maps) {
  check_rank(op, "maps", maps, 3);
  const int64_t height = maps.size(1), width = maps.size(2);
  WS_CHECK(height < kMaxPixels && width < kMaxPixels && height * width < kMaxPixels, "wsfast::", op,
           ": maps must have less than 2^30 pixels each");
  WS_CHECK((height + 2) * (width + 2) <= INT32_MAX, "wsfast::", op,
           ": maps inside a frame of one pixel must have less than 2^31 pixels each");
  WS_CHECK(height > 0 && width > 0, "wsfast::", op, ": maps must not be empty images");
  return {maps.size(0), static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

// One row of levels; whether it is free of NaN.
template <class T>
bool write_levels(const T* from, int32_t width, uint8_t* row) {
  int nan = 0;
  for (int32_t x = 0; x < width; ++x) {
    const auto value = to_acc(from[x]);
    nan |= value != value;
    row[x] = static_cast<uint8_t>(level_of(value));
  }
  return nan == 0;
}

// uint8 maps are levels already.
bool write_levels(const uint8_t* from, int32_t width, uint8_t* row) {
  std::copy_n(from, width, row);
  return true;
}

// Calls body(read) where read(contours, n) hands over map n as levels and returns whether it is
// free of NaN.
template <class Body>
void with_reader(const char* op, const Tensor& maps, const Shape& shape, const Body& body) {
  const auto with_type = [&]<class T>() {
    const T* data = read_ptr<T>(maps);
    body([=](Contours& contours, int64_t n) {
      const T* map = data + n * shape.pixels();
      return contours.read(shape.height, shape.width, [&](int32_t y, uint8_t* row) {
        return write_levels(map + int64_t{y} * shape.width, shape.width, row);
      });
    });
  };
  if (maps.scalar_type() == ScalarType::Byte) {
    with_type.template operator()<uint8_t>();
  } else {
    dispatch_floating(maps.scalar_type(), op, with_type);
  }
}

std::tuple<Tensor, Tensor, Tensor> level_boxes_cpu(const Tensor& maps) {
  const Shape shape = shape_of("level_boxes", maps);
  const Tensor source = as_contiguous(maps);
  Tensor boxes = new_tensor(maps, {shape.images, kLevels, 4}, ScalarType::Int);
  Tensor area2 = new_tensor(maps, {shape.images, kLevels}, ScalarType::Int);
  Tensor valid = new_tensor(maps, {shape.images}, ScalarType::Bool);
  with_reader("level_boxes", source, shape, [&](const auto& read) {
    share_tasks(shape.images, shape.grain(), [&](Tasks tasks) {
      Contours contours;
      for (int64_t n; tasks.take(n);) {
        write_ptr<bool>(valid)[n] = read(contours, n);
        contours.largest(write_ptr<int32_t>(boxes) + n * kLevels * 4,
                         write_ptr<int32_t>(area2) + n * kLevels);
      }
    });
  });
  return {boxes, area2, valid};
}

// The true boxes of every image: rows offsets[n] to offsets[n + 1] of one list.
struct Truth {
  const int64_t* boxes;
  const int64_t* offsets;
  int64_t count;

  // The best IoU with any of them; offsets outside the list are cut off.
  double score(int64_t image, const Box& corners) const {
    const int64_t begin = std::max<int64_t>(offsets[image], 0);
    const int64_t end = std::min(offsets[image + 1], count);
    double best = 0.0;
    for (int64_t k = begin; k < end; ++k) {
      best = std::max(best, inclusive_iou(corners, boxes + 4 * k));
    }
    return best;
  }
};

// What is best at each level of one map: over components and holes, or, where the level is empty,
// the box [0, 0, 0, 0] that the protocol falls back to.
void combine(const double* components, const double* holes, double empty, double* result) {
  for (int level = 0; level < kLevels; ++level) {
    const double hole = holes == nullptr ? -1.0 : holes[level];
    result[level] = components[level] < 0.0 ? empty : std::max(components[level], hole);
  }
}

std::tuple<Tensor, Tensor> level_best_iou_cpu(const Tensor& maps, const Tensor& gt_boxes,
                                              const Tensor& gt_offsets, bool holes) {
  const Shape shape = shape_of("level_best_iou", maps);
  WS_CHECK(gt_boxes.scalar_type() == ScalarType::Long && gt_boxes.dim() == 2 &&
               gt_boxes.size(1) == 4,
           "wsfast::level_best_iou: gt_boxes must be int64 of shape (G, 4)");
  WS_CHECK(gt_offsets.scalar_type() == ScalarType::Long && gt_offsets.dim() == 1 &&
               gt_offsets.size(0) == shape.images + 1,
           "wsfast::level_best_iou: gt_offsets must be int64 of shape (N + 1,)");
  const Tensor source = as_contiguous(maps), boxes = as_contiguous(gt_boxes);
  const Tensor offsets = as_contiguous(gt_offsets);
  const Truth truth{read_ptr<int64_t>(boxes), read_ptr<int64_t>(offsets), gt_boxes.size(0)};
  Tensor iou = new_tensor(maps, {shape.images, kLevels}, ScalarType::Double);
  Tensor valid = new_tensor(maps, {shape.images}, ScalarType::Bool);
  const int64_t kinds = holes ? 2 : 1;  // components and holes are tasks of their own
  std::vector<double> best(shape.images * kinds * kLevels);
  with_reader("level_best_iou", source, shape, [&](const auto& read) {
    share_tasks(shape.images * kinds, shape.grain(), [&](Tasks tasks) {
      Contours contours;
      for (int64_t task; tasks.take(task);) {
        const int64_t n = task / kinds;
        const auto score = [&](const Box& box) {
          return truth.score(n, protocol_corners(box, shape.height, shape.width));
        };
        const bool numbers = read(contours, n);
        double* result = best.data() + task * kLevels;
        if (task % kinds == 1) {
          contours.best_hole(score, result);
        } else {
          contours.best_component(score, result);
          write_ptr<bool>(valid)[n] = numbers;
        }
      }
    });
  });
  for (int64_t n = 0; n < shape.images; ++n) {
    const double* components = best.data() + n * kinds * kLevels;
    combine(components, holes ? components + kLevels : nullptr, truth.score(n, {0, 0, 0, 0}),
            write_ptr<double>(iou) + n * kLevels);
  }
  return {iou, valid};
}

// The row of the histogram for each value of a mask: 0 background, 1 foreground, 255 none.
enum MaskRow : uint8_t { kBackground = 0, kForeground = 1, kIgnored = 2, kUnknown = 3 };

MaskRow mask_row(uint8_t value) {
  if (value <= 1) return static_cast<MaskRow>(value);
  return value == 255 ? kIgnored : kUnknown;
}

std::tuple<Tensor, Tensor, Tensor> score_histograms_cpu(const Tensor& maps, const Tensor& masks,
                                                        const Tensor& edges) {
  const Shape shape = shape_of("score_histograms", maps);
  WS_CHECK(masks.scalar_type() == ScalarType::Byte && sizes_of(masks) == sizes_of(maps),
           "wsfast::score_histograms: masks must be uint8 of the maps' shape");
  WS_CHECK(edges.scalar_type() == ScalarType::Double && edges.dim() == 1 && edges.size(0) >= 2,
           "wsfast::score_histograms: edges must be float64 of shape (E,), E >= 2");
  const Tensor scores = as_contiguous(maps), kinds = as_contiguous(masks);
  const Tensor limits = as_contiguous(edges);
  const BinSearch bin_of(read_ptr<double>(limits), edges.size(0));
  const int64_t bins = bin_of.bins(), row_length = bins + 1;  // the last counts what lies outside
  Tensor counts = new_tensor(maps, {2, bins}, ScalarType::Long);
  Tensor valid = new_tensor(maps, {shape.images}, ScalarType::Bool);
  Tensor known = new_tensor(maps, {shape.images}, ScalarType::Bool);
  int64_t* total = write_ptr<int64_t>(counts);
  std::fill(total, total + 2 * bins, 0);
  const int64_t parts = shape.parts(), tasks_in_all = shape.images * parts;
  std::vector<uint8_t> numbers(tasks_in_all), all_known(tasks_in_all);
  std::mutex adding;
  dispatch_floating(maps.scalar_type(), "score_histograms", [&]<class T>() {
    share_tasks(tasks_in_all, shape.grain(), [&](Tasks tasks) {
      std::vector<int64_t> rows(4 * row_length);
      for (int64_t task; tasks.take(task);) {
        const int64_t part = task % parts, image = task / parts * shape.pixels();
        const T* map = read_ptr<T>(scores) + image;
        const uint8_t* mask = read_ptr<uint8_t>(kinds) + image;
        const int64_t end = shape.pixels() * (part + 1) / parts;
        bool is_number = true, is_known = true;
        for (int64_t i = shape.pixels() * part / parts; i < end; ++i) {
          const double score = to_acc(map[i]);
          const MaskRow row = mask_row(mask[i]);
          is_number &= score == score;
          is_known &= row != kUnknown;
          ++rows[row * row_length + bin_of(score)];
        }
        numbers[task] = is_number;
        all_known[task] = is_known;
      }
      const std::lock_guard<std::mutex> lock(adding);  // integers: any order gives the same sum
      for (int row = 0; row < 2; ++row) {
        for (int64_t bin = 0; bin < bins; ++bin) {
          total[row * bins + bin] += rows[row * row_length + bin];
        }
      }
    });
  });
  for (int64_t n = 0; n < shape.images; ++n) {
    const auto holds = [&](const std::vector<uint8_t>& flags) {
      const auto first = flags.begin() + n * parts;
      return std::all_of(first, first + parts, [](uint8_t flag) { return flag != 0; });
    };
    write_ptr<bool>(valid)[n] = holds(numbers);
    write_ptr<bool>(known)[n] = holds(all_known);
  }
  return {counts, valid, known};
}

}  // namespace
}  // namespace wsfast::levels

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def("level_boxes(Tensor maps) -> (Tensor, Tensor, Tensor)");
  m.def(
      "level_best_iou(Tensor maps, Tensor gt_boxes, Tensor gt_offsets, bool holes)"
      " -> (Tensor, Tensor)");
  m.def(
      "score_histograms(Tensor maps, Tensor masks, Tensor edges)"
      " -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("level_boxes", TORCH_BOX(&wsfast::levels::level_boxes_cpu));
  m.impl("level_best_iou", TORCH_BOX(&wsfast::levels::level_best_iou_cpu));
  m.impl("score_histograms", TORCH_BOX(&wsfast::levels::score_histograms_cpu));
}
