// The seeds kernels, launched as seeds_cuda.cu launches them.
#include "../../csrc/ops/seeds/seeds_launch.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace sd = wsfast::seeds;

// Device copy of an array that may be missing; null then.
template <class T>
class OptionalArray {
 public:
  explicit OptionalArray(const std::optional<Array<T>>& array) {
    if (array.has_value()) copy_.emplace(*array);
  }
  T* data() { return copy_.has_value() ? copy_->data() : nullptr; }

 private:
  std::optional<DeviceArray<T>> copy_;
};

Array<int64_t> seed_keys(int64_t seed, const Array<int64_t>& image_ids, int64_t epoch) {
  DeviceArray<uint64_t> word(1);
  word.data()[0] = static_cast<uint64_t>(seed);
  DeviceArray<int64_t> ids(image_ids), keys(image_ids.size());
  sd::launch_keys(word.data(), reinterpret_cast<const uint64_t*>(ids.data()), image_ids.size(),
                  static_cast<uint64_t>(epoch), reinterpret_cast<uint64_t*>(keys.data()), nullptr);
  return keys.numpy();
}

py::tuple sample_seeds(const Array<float>& cams, const Array<int64_t>& keys,
                       const std::optional<Array<bool>>& roi_masks,
                       const std::optional<Array<int32_t>>& roi_boxes,
                       const std::optional<Array<bool>>& background_only, int64_t foreground,
                       int64_t background, bool top, double foreground_share,
                       double background_share, bool weighted, bool outside_roi, int erode,
                       int dilate) {
  const py::ssize_t images = cams.shape(0), height = cams.shape(1), width = cams.shape(2);
  const size_t pixels = static_cast<size_t>(cams.size());
  DeviceArray<float> maps(cams);
  DeviceArray<int64_t> words(keys);
  OptionalArray<bool> masks(roi_masks), clean(background_only);
  OptionalArray<int32_t> boxes(roi_boxes);
  DeviceArray<uint8_t> marks(pixels), rows(pixels);
  DeviceArray<uint32_t> clocks(weighted ? pixels : 0);
  DeviceArray<bool> varies(images), valid(images);
  DeviceArray<int64_t> seeds(pixels);
  const sd::Batch batch{images,
                        static_cast<int>(height),
                        static_cast<int>(width),
                        maps.data(),
                        reinterpret_cast<const uint64_t*>(words.data()),
                        reinterpret_cast<const uint8_t*>(masks.data()),
                        boxes.data(),
                        clean.data(),
                        marks.data(),
                        rows.data(),
                        clocks.data(),
                        varies.data(),
                        valid.data(),
                        seeds.data()};
  const sd::Options options{foreground, background,  top,       foreground_share, background_share,
                            weighted,   outside_roi, erode / 2, dilate / 2};
  sd::launch_seeds(batch, options, nullptr);
  return py::make_tuple(seeds.numpy({images, height, width}), valid.numpy());
}

}  // namespace

void bind_seeds(py::module_& m) {
  m.def("seed_keys", &seed_keys);
  m.def("sample_seeds", &sample_seeds);
}

}  // namespace wsfast::bind
