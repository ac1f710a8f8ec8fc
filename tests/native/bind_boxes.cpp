// The boxes kernels, launched as boxes_cuda.cu launches them.
#include "../../csrc/ops/boxes/boxes_launch.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace bo = wsfast::boxes;

struct Workspace {
  py::ssize_t images, height, width;
  bo::Components components;
  DeviceArray<uint32_t> bits;
  DeviceArray<int32_t> parents, row_roots, counts;

  template <class T>
  Workspace(const Array<T>& batch, int64_t connectivity)
      : images(batch.shape(0)),
        height(batch.shape(1)),
        width(batch.shape(2)),
        components(images, height, width, connectivity),
        bits(components.bits_count()),
        parents(components.parents_count()),
        row_roots(components.row_roots_count()),
        counts(images) {}

  bo::Labeling labeling() {
    return {bits.data(), parents.data(), row_roots.data(), counts.data()};
  }
};

struct Slots {
  int64_t max_boxes, min_area, key_capacity;
  DeviceArray<int32_t> sizes;
  DeviceArray<uint64_t> keys;
  DeviceArray<int32_t> boxes, areas, counts;
  DeviceArray<int64_t> sums;
  DeviceArray<int32_t> infinite;

  Slots(const Workspace& work, int64_t most, int64_t least)
      : max_boxes(most),
        min_area(least),
        key_capacity(work.components.key_capacity(most)),
        sizes(work.components.sizes_count()),
        keys(work.images * key_capacity),
        boxes(work.images * most * 4),
        areas(work.images * most),
        counts(work.images),
        sums(work.images * most),
        infinite(work.images * most) {}

  bo::BoxSlots slots(bool scored) {
    return {max_boxes,     min_area,     sizes.data(),  keys.data(),
            key_capacity,  boxes.data(), areas.data(),  counts.data(),
            scored ? sums.data() : nullptr, scored ? infinite.data() : nullptr};
  }
};

py::tuple connected_components(const Array<uint8_t>& mask, int64_t connectivity) {
  Workspace work(mask, connectivity);
  DeviceArray<uint8_t> bytes(mask);
  DeviceArray<int32_t> labels(mask.size());
  work.components.label_masks(bytes.data(), work.labeling(), labels.data(), nullptr);
  return py::make_tuple(labels.numpy({work.images, work.height, work.width}), work.counts.numpy());
}

py::tuple component_boxes(const Array<uint8_t>& mask, int64_t max_boxes, int64_t connectivity,
                          int64_t min_area) {
  Workspace work(mask, connectivity);
  Slots slots(work, max_boxes, min_area);
  DeviceArray<uint8_t> bytes(mask);
  work.components.box_masks(bytes.data(), work.labeling(), slots.slots(false), nullptr);
  return py::make_tuple(slots.boxes.numpy({work.images, max_boxes, 4}),
                        slots.areas.numpy({work.images, max_boxes}), slots.counts.numpy());
}

template <class T>
py::tuple cam_boxes(const Array<T>& cams, const Array<acc_t<T>>& thresholds, int64_t max_boxes,
                    int64_t connectivity, int64_t min_area) {
  Workspace work(cams, connectivity);
  Slots slots(work, max_boxes, min_area);
  DeviceArray<T> maps(cams);
  DeviceArray<acc_t<T>> limits(thresholds);
  DeviceArray<int32_t> exponents(work.images);
  DeviceArray<bool> valid(work.images);
  DeviceArray<float> scores(work.images * max_boxes);
  work.components.box_maps(maps.data(), limits.data(), work.labeling(),
                           {exponents.data(), valid.data()}, slots.slots(true), scores.data(),
                           nullptr);
  return py::make_tuple(slots.boxes.numpy({work.images, max_boxes, 4}),
                        scores.numpy({work.images, max_boxes}),
                        slots.areas.numpy({work.images, max_boxes}), slots.counts.numpy(),
                        valid.numpy());
}

template <class T>
py::tuple otsu_level(const Array<T>& cams, int64_t repeat) {
  const py::ssize_t images = cams.shape(0);
  DeviceArray<T> maps(cams);
  DeviceArray<uint32_t> histograms(images * bo::kLevels);
  DeviceArray<int32_t> levels(images);
  DeviceArray<bool> valid(images);
  bo::find_otsu_levels(maps.data(), images, cams.shape(1) * cams.shape(2), repeat,
                       histograms.data(), levels.data(), valid.data(), nullptr);
  return py::make_tuple(levels.numpy(), valid.numpy(), histograms.numpy({images, bo::kLevels}));
}

Array<int32_t> otsu_of_histograms(const Array<uint32_t>& histograms, int64_t repeat) {
  const py::ssize_t images = histograms.shape(0);
  DeviceArray<uint32_t> counts(histograms);
  DeviceArray<int32_t> levels(images);
  WS_LAUNCH(bo::otsu_kernel, bo::block_per_image(images), dim3(kWarpSize), 0, nullptr,
            counts.data(), repeat, levels.data());
  return levels.numpy();
}

// The places of the words that a warp takes from word `index` on.
py::list word_places(int64_t images, int height, int width, int64_t index) {
  const bo::Grid grid{images, height, width, ceil_div(width, bo::kWordBits), 0, false};
  py::list places;
  bo::WarpWords(grid, index).each(grid, [&](int, const bo::WordPlace& at) {
    places.append(py::make_tuple(at.image, at.y, at.word, at.pixel, at.batch_pixel()));
  });
  return places;
}

}  // namespace

void bind_boxes(py::module_& m) {
  m.def("connected_components", &connected_components);
  m.def("component_boxes", &component_boxes);
  def_floating(m, "cam_boxes", []<class Tag>(Tag) { return &cam_boxes<typename Tag::type>; });
  m.def("otsu_of_histograms", &otsu_of_histograms);
  m.def("word_places", &word_places);
  def_floating(m, "otsu_level", []<class Tag>(Tag) { return &otsu_level<typename Tag::type>; });
}

}  // namespace wsfast::bind
