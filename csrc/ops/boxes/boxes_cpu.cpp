// Schemas and CPU kernels of the boxes room: one image per task or, where images are large, one band
// of rows (boxes_bands.h), so results do not depend on the number of threads.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "boxes_args.h"
#include "boxes_bands.h"
#include "boxes_components.h"
#include "boxes_labels.h"
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

constexpr int64_t kPixelsPerThread = int64_t{1} << 17;  // of one large map

// body(n) over images of so many parts, on several threads; where few images are left over, each of
// these may use all threads.
template <class Body>
void for_images(const Shape& shape, int64_t parts, const Body& body) {
  const int64_t shared = shape.images - images_alone(shape.images, parts);
  share_tasks(shared, grain(shape), [&](Tasks tasks) {
    for (int64_t n; tasks.take(n);) body(n);
  });
  for (int64_t n = shared; n < shape.images; ++n) body(n);
}

template <class Passes>
struct MaskRows {
  const uint8_t* pixels;
  int32_t width;

  MaskRows from(int32_t y) const { return {pixels + int64_t{y} * width, width}; }

  // Row y as bits of a labeler. False if it holds NaN.
  bool fill_bits(int32_t y, uint64_t* words) const {
    Passes::nonzero_bits(pixels + int64_t{y} * width, width, words);
    return true;
  }

  // What a run adds to the sum of its component.
  template <class Labeler>
  double sum(const Labeler&, const typename Labeler::Run&) const {
    return 0.0;
  }
};

// {map >= threshold}
template <class Passes, class T>
struct MapRows {
  const T* map;
  acc_t<T> threshold;
  int32_t width;

  const T* row(int32_t y) const { return map + int64_t{y} * width; }
  MapRows from(int32_t y) const { return {row(y), threshold, width}; }

  bool fill_bits(int32_t y, uint64_t* words) const {
    return Passes::threshold_bits(row(y), width, threshold, words);
  }

  template <class Labeler>
  double sum(const Labeler& labeler, const typename Labeler::Run& run) const {
    double sum = 0;
    labeler.for_stretches(run, [&](int32_t y, int32_t begin, int32_t end) {
      sum += Passes::sum(row(y) + begin, end - begin);
    });
    return sum;
  }
};

// ---- labels -------------------------------------------------------------------------------------

template <class Labeler, class NumberOf>
void write_labels(const Labeler& labeler, int64_t pixels, const NumberOf& number_of,
                  int32_t* labels) {
  std::fill(labels, labels + pixels, 0);
  labeler.for_runs([&](const typename Labeler::Run& run) {
    labeler.paint(run, number_of(run.component) + 1, labels);
  });
}

template <class Passes>
int32_t label_image(typename Passes::Labeler& labeler, const MaskRows<Passes>& rows) {
  return labeler.label([&](int32_t y, uint64_t* words) { rows.fill_bits(y, words); });
}

template <class Passes>
void label_images(const uint8_t* masks, const Shape& shape, int connectivity, int32_t* labels,
                  int32_t* counts) {
  share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
    typename Passes::Labeler labeler(shape.height, shape.width, connectivity);
    for (int64_t n; tasks.take(n);) {
      const int64_t at = n * shape.pixels();
      counts[n] = label_image<Passes>(labeler, {masks + at, shape.width});
      write_labels(labeler, shape.pixels(), [](int32_t c) { return c; }, labels + at);
    }
  });
}

// Writes the labels of one image by bands; number of its components.
template <class Passes>
int32_t label_bands(const MaskRows<Passes>& rows, const Bands& bands, int connectivity,
                    int32_t* labels) {
  struct Band {
    std::optional<typename Passes::Labeler> labeler;
    Edges edges;
    int32_t components;
  };
  std::vector<Band> parts(bands.count());
  const auto for_bands = [&](const auto& body) {
    share_tasks(bands.count(), 1, [&](Tasks tasks) {
      for (int64_t b; tasks.take(b);) body(static_cast<int32_t>(b), parts[b]);
    });
  };
  for_bands([&](int32_t b, Band& band) {
    band.labeler.emplace(bands.rows(b), rows.width, connectivity);
    band.components = label_image<Passes>(*band.labeler, rows.from(bands.begin(b)));
    band.edges = find_edges(*band.labeler, bands.rows(b), band.components);
  });
  const auto edges_of = [&](int32_t b) -> const Edges& { return parts[b].edges; };
  const Seams seams(bands.count(), connectivity, edges_of);
  const BandNumbers numbers(bands.count(), seams, edges_of,
                            [&](int32_t b) { return parts[b].components; });
  for_bands([&](int32_t b, Band& band) {
    const std::vector<int32_t> number = numbers.of_band(b, band.edges, band.components);
    write_labels(*band.labeler, int64_t{bands.rows(b)} * rows.width,
                 [&](int32_t c) { return number[c]; },
                 labels + int64_t{bands.begin(b)} * rows.width);
    band.labeler.reset();
  });
  return numbers.count();
}

std::tuple<Tensor, Tensor> connected_components_cpu(const Tensor& mask, int64_t connectivity) {
  const Shape shape = shape_of("connected_components", "mask", mask);
  check_connectivity("connected_components", connectivity);
  const Tensor bytes = mask_bytes("connected_components", mask);
  Tensor labels = new_tensor(mask, {shape.images, shape.height, shape.width}, ScalarType::Int);
  Tensor counts = new_tensor(mask, {shape.images}, ScalarType::Int);
  const Bands bands(shape.height, shape.width);
  const auto* masks = read_ptr<uint8_t>(bytes);
  auto* const label = write_ptr<int32_t>(labels);
  auto* const count = write_ptr<int32_t>(counts);
  const auto neighbours = static_cast<int>(connectivity);
  dispatch_simd([&]<class Passes>() {
    // Labels are the same either way.
    Shape shared = shape;
    shared.images -= images_alone(shape.images, bands.count());
    label_images<Passes>(masks, shared, neighbours, label, count);
    for (int64_t n = shared.images; n < shape.images; ++n) {
      const int64_t at = n * shape.pixels();
      count[n] = label_bands<Passes>({masks + at, shape.width}, bands, neighbours, label + at);
    }
  });
  return {labels, counts};
}

// ---- boxes --------------------------------------------------------------------------------------

// Writes the boxes of one image after the other into the batch; `scores` are null for masks.
class SlotWriter {
 public:
  SlotWriter(const BoxTensors& out, float* scores, const BoxOptions& options)
      : most_(options.max_boxes),
        boxes_(write_ptr<int32_t>(out.boxes)),
        scores_(scores),
        areas_(write_ptr<int32_t>(out.areas)),
        counts_(write_ptr<int32_t>(out.counts)) {}

  // component(k) for the `count` largest, of which as many are written as there is room for.
  template <class ComponentAt>
  void write(int64_t image, int64_t count, const ComponentAt& component) const {
    counts_[image] = static_cast<int32_t>(count);
    const int64_t first = image * most_, found = std::min(most_, count);
    for (int64_t k = 0; k < found; ++k) write_slot(first + k, component(k));
    std::fill(boxes_ + (first + found) * 4, boxes_ + (first + most_) * 4, -1);
    std::fill(areas_ + first + found, areas_ + first + most_, -1);
    if (scores_ != nullptr) std::fill(scores_ + first + found, scores_ + first + most_, -1.0f);
  }

 private:
  void write_slot(int64_t slot, const Component& c) const {
    int32_t* box = boxes_ + slot * 4;
    box[0] = c.x0;
    box[1] = c.y0;
    box[2] = c.x1;
    box[3] = c.y1;
    areas_[slot] = c.area;
    if (scores_ != nullptr) scores_[slot] = static_cast<float>(c.sum / c.area);
  }

  int64_t most_;
  int32_t* boxes_;
  float* scores_;
  int32_t* areas_;
  int32_t* counts_;
};

// Small images: rows_of(n) are the rows of image n. done(n, numbers) tells whether it has no NaN.
template <class Labeler, class RowsOf, class Done>
void box_images(const Shape& shape, const BoxOptions& options, const SlotWriter& writer,
                const RowsOf& rows_of, const Done& done) {
  share_tasks(shape.images, grain(shape), [&](Tasks tasks) {
    Labeler labeler(shape.height, shape.width, static_cast<int>(options.connectivity));
    std::vector<Component> components;
    std::vector<uint64_t> keys;
    for (int64_t n; tasks.take(n);) {
      const auto rows = rows_of(n);
      bool numbers = true;
      const int32_t count = labeler.label(
          [&](int32_t y, uint64_t* words) { numbers &= rows.fill_bits(y, words); });
      measure(labeler, count, [&](const auto& run) { return rows.sum(labeler, run); }, components);
      find_keys(components, options.min_area, keys);
      sort_largest(keys, options.max_boxes);
      writer.write(n, static_cast<int64_t>(keys.size()), [&](int64_t k) {
        return components[component_of(keys[k])];
      });
      done(n, numbers);
    }
  });
}

// One large image by bands. False if it holds NaN.
template <class Labeler, class Rows>
bool box_bands(int64_t image, const Bands& bands, const BoxOptions& options,
               const SlotWriter& writer, const Rows& rows) {
  const auto connectivity = static_cast<int>(options.connectivity);
  std::vector<BandBoxes> parts(bands.count());
  std::atomic<bool> numbers{true};
  share_tasks(bands.count(), 1, [&](Tasks tasks) {
    Labeler labeler(bands.rows(), rows.width, connectivity);
    std::vector<Component> components;
    for (int64_t task; tasks.take(task);) {
      const auto b = static_cast<int32_t>(task);
      const Rows own = rows.from(bands.begin(b));
      BandBoxes& band = parts[b];
      band.components = label_band(labeler, bands.rows(b), [&](int32_t y, uint64_t* words) {
        if (!own.fill_bits(y, words)) numbers.store(false, std::memory_order_relaxed);
      });
      band.edges = find_edges(labeler, bands.rows(b), band.components);
      measure(labeler, band.components, [&](const auto& run) { return own.sum(labeler, run); },
              components);
      keep_largest(components, bands.begin(b), options.min_area, options.max_boxes, band);
    }
  });
  const MergedBoxes merged(parts, connectivity, options.min_area, options.max_boxes);
  writer.write(image, merged.count(), [&](int64_t k) { return merged.component(k); });
  return numbers;
}

template <class Passes, class RowsOf, class Done>
void box_batch(const Shape& shape, const BoxOptions& options, const SlotWriter& writer,
               const RowsOf& rows_of, const Done& done) {
  using Labeler = typename Passes::Labeler;
  const Bands bands(shape.height, shape.width);
  if (bands.count() == 1) return box_images<Labeler>(shape, options, writer, rows_of, done);
  for_images(shape, bands.count(), [&](int64_t n) {
    done(n, box_bands<Labeler>(n, bands, options, writer, rows_of(n)));
  });
}

std::tuple<Tensor, Tensor, Tensor> component_boxes_cpu(const Tensor& mask, int64_t max_boxes,
                                                       int64_t connectivity, int64_t min_area) {
  const Shape shape = shape_of("component_boxes", "mask", mask);
  const BoxOptions options = box_options("component_boxes", max_boxes, connectivity, min_area);
  const Tensor bytes = mask_bytes("component_boxes", mask);
  const BoxTensors out(mask, shape, max_boxes);
  const SlotWriter writer(out, nullptr, options);
  dispatch_simd([&]<class Passes>() {
    const auto rows_of = [&](int64_t n) {
      return MaskRows<Passes>{read_ptr<uint8_t>(bytes) + n * shape.pixels(), shape.width};
    };
    box_batch<Passes>(shape, options, writer, rows_of, [](int64_t, bool) {});
  });
  return {out.boxes, out.areas, out.counts};
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
  Tensor scores = new_scores(cams, shape, max_boxes);
  const SlotWriter writer(out, write_ptr<float>(scores), options);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "cam_boxes", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      const auto rows_of = [&](int64_t n) {
        return MapRows<Passes, T>{read_ptr<T>(maps) + n * shape.pixels(),
                                  read_ptr<acc_t<T>>(limits)[n], shape.width};
      };
      box_batch<Passes>(shape, options, writer, rows_of,
                        [&](int64_t n, bool numbers) { write_ptr<bool>(valid)[n] = numbers; });
    });
  });
  return {out.boxes, scores, out.areas, out.counts, valid};
}

// ---- boxes of labels ----------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> label_boxes_cpu(const Tensor& labels, int64_t max_labels) {
  const Shape shape = shape_of("label_boxes", "labels", labels);
  WS_CHECK(labels.scalar_type() == ScalarType::Int, "wsfast::label_boxes: labels must be int32");
  WS_CHECK(max_labels >= 1, "wsfast::label_boxes: max_labels must be at least 1, got ", max_labels);
  const Tensor images = as_contiguous(labels);
  const BoxTensors out(labels, shape, max_labels);
  const auto measure_one = [&](int64_t n) {
    const LabelImage image{read_ptr<int32_t>(images) + n * shape.pixels(), shape.height,
                           shape.width};
    write_ptr<int32_t>(out.counts)[n] =
        measure_labels(image, max_labels, write_ptr<int32_t>(out.boxes) + n * max_labels * 4,
                       write_ptr<int32_t>(out.areas) + n * max_labels);
  };
  for_images(shape, Bands(shape.height, shape.width).count(), measure_one);
  return {out.boxes, out.areas, out.counts};
}

// ---- Otsu ---------------------------------------------------------------------------------------

// Pixels of each level of one map, which threads share where they are free: whole numbers, so they
// may add up in any order. False if the map holds NaN.
template <class Passes, class T>
bool count_map(const T* map, int64_t pixels, int64_t* histogram) {
  bool numbers = true;
  std::mutex adding;
  parallel_for(0, pixels, kPixelsPerThread, [&](int64_t begin, int64_t end) {
    uint32_t part[kLevels] = {};
    const bool known = Passes::count_levels(map + begin, end - begin, part);
    const std::lock_guard lock(adding);
    numbers &= known;
    for (int level = 0; level < kLevels; ++level) histogram[level] += part[level];
  });
  return numbers;
}

std::tuple<Tensor, Tensor> otsu_level_cpu(const Tensor& cams, int64_t repeat) {
  const Shape shape = shape_of("otsu_level", "cams", cams);
  const Tensor maps = as_contiguous(cams);
  Tensor levels = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "otsu_level", [&]<class T>() {
    dispatch_simd([&]<class Passes>() {
      const auto find = [&](int64_t n) {
        const T* map = read_ptr<T>(maps) + n * shape.pixels();
        int64_t histogram[kLevels] = {};
        write_ptr<bool>(valid)[n] = count_map<Passes>(map, shape.pixels(), histogram);
        write_ptr<int32_t>(levels)[n] = repeated_otsu_level(histogram, repeat);
      };
      for_images(shape, shape.pixels() / kPixelsPerThread, find);
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
