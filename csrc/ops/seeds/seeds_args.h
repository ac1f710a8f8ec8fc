// Arguments and outputs of the seeds room's ops, checked and made once for both backends.
#pragma once

#include "../../core/torch_api.h"
#include "seeds_math.h"

namespace wsfast::seeds {

struct Args {
  int64_t images, height, width;
  Tensor cams, keys;
  std::optional<Tensor> roi_mask, roi_boxes, background_only;
  Tensor seeds, valid;

  int64_t pixels() const { return height * width; }
};

inline void check_like(const char* name, const Tensor& tensor, const Tensor& cams,
                       ScalarType dtype) {
  WS_CHECK(tensor.scalar_type() == dtype && tensor.size(0) == cams.size(0) &&
               tensor.get_device_index() == cams.get_device_index(),
           "wsfast::sample_seeds: ", name, " must hold one entry per map, on its device");
}

inline Args seed_args(const Tensor& cams, const Tensor& keys, const std::optional<Tensor>& roi,
                      const std::optional<Tensor>& background_only) {
  check_rank("sample_seeds", "cams", cams, 3);
  check_rank("sample_seeds", "keys", keys, 1);
  WS_CHECK(cams.scalar_type() == ScalarType::Float, "wsfast::sample_seeds: cams must be float32");
  check_like("keys", keys, cams, ScalarType::Long);
  Args args{cams.size(0), cams.size(1), cams.size(2), as_contiguous(cams), as_contiguous(keys)};
  WS_CHECK(args.height <= INT32_MAX && args.width <= INT32_MAX && args.pixels() <= INT32_MAX,
           "wsfast::sample_seeds: cams must have fewer than 2^31 pixels per image, got ",
           args.height, " x ", args.width);
  if (roi.has_value() && roi->dim() == 3) {
    check_like("roi", *roi, cams, ScalarType::Bool);
    WS_CHECK(roi->size(1) == args.height && roi->size(2) == args.width,
             "wsfast::sample_seeds: roi must have the maps' size");
    args.roi_mask = as_contiguous(*roi);
  } else if (roi.has_value()) {
    check_rank("sample_seeds", "roi", *roi, 2);
    check_like("roi", *roi, cams, ScalarType::Int);
    WS_CHECK(roi->size(1) == 4, "wsfast::sample_seeds: roi must hold 4 numbers per box");
    args.roi_boxes = as_contiguous(*roi);
  }
  if (background_only.has_value()) {
    check_rank("sample_seeds", "background_only", *background_only, 1);
    check_like("background_only", *background_only, cams, ScalarType::Bool);
    args.background_only = as_contiguous(*background_only);
  }
  args.seeds = new_tensor(cams, {args.images, args.height, args.width}, ScalarType::Long);
  args.valid = new_tensor(cams, {args.images}, ScalarType::Bool);
  return args;
}

inline Options seed_options(int64_t foreground, int64_t background, bool top,
                            double foreground_share, double background_share, bool weighted,
                            bool background_outside_roi, int64_t erode, int64_t dilate) {
  WS_CHECK(foreground >= 0 && background >= 0,
           "wsfast::sample_seeds: foreground and background must be at least 0");
  WS_CHECK(foreground_share >= 0 && foreground_share <= 1 && background_share >= 0 &&
               background_share <= 1,
           "wsfast::sample_seeds: shares must be between 0 and 1");
  for (const int64_t side : {erode, dilate}) {
    WS_CHECK(side >= 0 && side <= INT32_MAX && (side == 0 || side % 2 == 1),
             "wsfast::sample_seeds: erode and dilate must be 0 or odd");
  }
  return {foreground, background, top, foreground_share, background_share, weighted,
          background_outside_roi, static_cast<int>(erode / 2), static_cast<int>(dilate / 2)};
}

struct KeyArgs {
  int64_t images;
  Tensor seed, image_ids;
  Tensor keys;
};

inline KeyArgs key_args(const Tensor& seed, const Tensor& image_ids) {
  check_rank("seed_keys", "seed", seed, 1);
  check_rank("seed_keys", "image_ids", image_ids, 1);
  WS_CHECK(seed.scalar_type() == ScalarType::Long && image_ids.scalar_type() == ScalarType::Long,
           "wsfast::seed_keys: seed and image_ids must be int64");
  WS_CHECK(seed.size(0) == 1, "wsfast::seed_keys: seed must hold one number, got ", seed.size(0));
  check_same_device("seed_keys", seed, image_ids);
  const int64_t images = image_ids.size(0);
  return {images, as_contiguous(seed), as_contiguous(image_ids),
          new_tensor(image_ids, {images}, ScalarType::Long)};
}

// The data of a tensor that may be missing.
template <class T>
const T* read_ptr_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? read_ptr<T>(*tensor) : nullptr;
}

}  // namespace wsfast::seeds
