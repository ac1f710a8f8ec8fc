// CUDA launcher of the boxes room.
#include <cstdint>

#include "boxes_args.h"
#include "boxes_launch.cuh"

namespace wsfast::boxes {
namespace {

void check_images(const char* op, const Shape& shape) {
  WS_CHECK(shape.images <= INT32_MAX / kMostParts, "wsfast::", op, ": too many images, got ",
           shape.images);
}

// Components of a batch and the memory to find them in.
struct Workspace {
  Components components;
  Tensor memory;  // parents, roots of the rows, bits
  Tensor counts;

  Workspace(const Tensor& like, const Shape& shape, int64_t connectivity)
      : components(shape.images, shape.height, shape.width, connectivity),
        memory(new_tensor(like,
                          {components.parents_count() + components.row_roots_count() +
                           components.bits_count()},
                          ScalarType::Int)),
        counts(new_tensor(like, {shape.images}, ScalarType::Int)) {}

  Labeling labeling() const {
    int32_t* const parents = write_ptr<int32_t>(memory);
    int32_t* const row_roots = parents + components.parents_count();
    int32_t* const bits = row_roots + components.row_roots_count();
    return {reinterpret_cast<uint32_t*>(bits), parents, row_roots, write_ptr<int32_t>(counts)};
  }
};

// Outputs of the box ops and the memory to choose them in.
struct Slots {
  BoxTensors out;
  BoxOptions options;
  bool scored;
  int64_t key_capacity, sizes_count, keys_count;
  Tensor ints;   // sizes; if scored, infinite
  Tensor longs;  // keys; if scored, sums

  Slots(const Tensor& like, const Shape& shape, const Components& components,
        const BoxOptions& given, bool is_scored)
      : out(like, shape, given.max_boxes),
        options(given),
        scored(is_scored),
        key_capacity(components.key_capacity(given.max_boxes)),
        sizes_count(components.sizes_count()),
        keys_count(shape.images * key_capacity),
        ints(new_tensor(like, {sizes_count + sums_count(shape)}, ScalarType::Int)),
        longs(new_tensor(like, {keys_count + sums_count(shape)}, ScalarType::Long)) {}

  BoxSlots slots() const {
    return {options.max_boxes,
            options.min_area,
            write_ptr<int32_t>(ints),
            write_ptr<uint64_t>(longs),
            key_capacity,
            write_ptr<int32_t>(out.boxes),
            write_ptr<int32_t>(out.areas),
            write_ptr<int32_t>(out.counts),
            scored ? write_ptr<int64_t>(longs) + keys_count : nullptr,
            scored ? write_ptr<int32_t>(ints) + sizes_count : nullptr};
  }

 private:
  int64_t sums_count(const Shape& shape) const {
    return scored ? shape.images * options.max_boxes : 0;
  }
};

std::tuple<Tensor, Tensor> connected_components_cuda(const Tensor& mask, int64_t connectivity) {
  const Shape shape = shape_of("connected_components", "mask", mask);
  check_connectivity("connected_components", connectivity);
  check_images("connected_components", shape);
  const DeviceGuard guard(mask.get_device_index());
  const Tensor bytes = mask_bytes("connected_components", mask);
  Tensor labels = new_tensor(mask, {shape.images, shape.height, shape.width}, ScalarType::Int);
  const Workspace work(mask, shape, connectivity);
  work.components.label_masks(read_ptr<uint8_t>(bytes), work.labeling(), write_ptr<int32_t>(labels),
                              current_stream(mask));
  check_launch();
  return {labels, work.counts};
}

std::tuple<Tensor, Tensor, Tensor> component_boxes_cuda(const Tensor& mask, int64_t max_boxes,
                                                        int64_t connectivity, int64_t min_area) {
  const Shape shape = shape_of("component_boxes", "mask", mask);
  const BoxOptions options = box_options("component_boxes", max_boxes, connectivity, min_area);
  check_images("component_boxes", shape);
  const DeviceGuard guard(mask.get_device_index());
  const Tensor bytes = mask_bytes("component_boxes", mask);
  const Workspace work(mask, shape, connectivity);
  const Slots slots(mask, shape, work.components, options, false);
  work.components.box_masks(read_ptr<uint8_t>(bytes), work.labeling(), slots.slots(),
                            current_stream(mask));
  check_launch();
  return {slots.out.boxes, slots.out.areas, slots.out.counts};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> cam_boxes_cuda(const Tensor& cams,
                                                                  const Tensor& thresholds,
                                                                  int64_t max_boxes,
                                                                  int64_t connectivity,
                                                                  int64_t min_area) {
  const Shape shape = shape_of("cam_boxes", "cams", cams);
  const BoxOptions options = box_options("cam_boxes", max_boxes, connectivity, min_area);
  check_thresholds(cams, thresholds);
  check_images("cam_boxes", shape);
  const DeviceGuard guard(cams.get_device_index());
  const Tensor maps = as_contiguous(cams), limits = as_contiguous(thresholds);
  const Workspace work(cams, shape, connectivity);
  const Slots slots(cams, shape, work.components, options, true);
  Tensor scores = new_scores(cams, shape, max_boxes);
  Tensor exponents = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  const MapFacts facts{write_ptr<int32_t>(exponents), write_ptr<bool>(valid)};
  dispatch_floating(cams.scalar_type(), "cam_boxes", [&]<class T>() {
    work.components.box_maps(read_ptr<T>(maps), read_ptr<acc_t<T>>(limits), work.labeling(), facts,
                             slots.slots(), write_ptr<float>(scores), current_stream(cams));
  });
  check_launch();
  return {slots.out.boxes, scores, slots.out.areas, slots.out.counts, valid};
}

std::tuple<Tensor, Tensor> otsu_level_cuda(const Tensor& cams, int64_t repeat) {
  const Shape shape = shape_of("otsu_level", "cams", cams);
  check_images("otsu_level", shape);
  const DeviceGuard guard(cams.get_device_index());
  const Tensor maps = as_contiguous(cams);
  Tensor histograms = new_tensor(cams, {shape.images, kLevels}, ScalarType::Int);
  Tensor levels = new_tensor(cams, {shape.images}, ScalarType::Int);
  Tensor valid = new_tensor(cams, {shape.images}, ScalarType::Bool);
  dispatch_floating(cams.scalar_type(), "otsu_level", [&]<class T>() {
    find_otsu_levels(read_ptr<T>(maps), shape.images, shape.pixels(), repeat,
                     write_ptr<uint32_t>(histograms), write_ptr<int32_t>(levels),
                     write_ptr<bool>(valid), current_stream(cams));
  });
  check_launch();
  return {levels, valid};
}

}  // namespace
}  // namespace wsfast::boxes

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("connected_components", TORCH_BOX(&wsfast::boxes::connected_components_cuda));
  m.impl("component_boxes", TORCH_BOX(&wsfast::boxes::component_boxes_cuda));
  m.impl("cam_boxes", TORCH_BOX(&wsfast::boxes::cam_boxes_cuda));
  m.impl("otsu_level", TORCH_BOX(&wsfast::boxes::otsu_level_cuda));
}
