// Arguments and outputs of the boxes ops, checked and made once for both backends.
#pragma once

#include "../../core/torch_api.h"

namespace wsfast::boxes {

struct Shape {
  int64_t images;
  int32_t height, width;

  int64_t pixels() const { return int64_t{height} * width; }
};

// Columns and rows, rounded up to whole words, strips and thread blocks, are int32.
inline constexpr int64_t kLongestSide = INT32_MAX - 1023;

inline Shape shape_of(const char* op, const char* name, const Tensor& tensor) {
  check_rank(op, name, tensor, 3);
  const int64_t height = tensor.size(1), width = tensor.size(2);
  WS_CHECK(height > 0 && width > 0, "wsfast::", op, ": ", name, " must not be empty images, got ",
           height, " x ", width);
  WS_CHECK(height <= kLongestSide && width <= kLongestSide && height * width <= INT32_MAX,
           "wsfast::", op, ": ", name, " must have fewer than 2^31 pixels per image, and sides of at"
           " most 2^31 - 1024, got ", height, " x ", width);
  return {tensor.size(0), static_cast<int32_t>(height), static_cast<int32_t>(width)};
}

// The mask's bytes; bool and uint8 masks are read as they are.
inline Tensor mask_bytes(const char* op, const Tensor& mask) {
  WS_CHECK(mask.scalar_type() == ScalarType::Bool || mask.scalar_type() == ScalarType::Byte,
           "wsfast::", op, ": mask must be bool or uint8");
  return as_contiguous(mask);
}

inline void check_connectivity(const char* op, int64_t connectivity) {
  WS_CHECK(connectivity == 4 || connectivity == 8, "wsfast::", op,
           ": connectivity must be 4 or 8, got ", connectivity);
}

struct BoxOptions {
  int64_t max_boxes, connectivity, min_area;
};

inline BoxOptions box_options(const char* op, int64_t max_boxes, int64_t connectivity,
                              int64_t min_area) {
  check_connectivity(op, connectivity);
  WS_CHECK(max_boxes >= 1 && min_area >= 1, "wsfast::", op,
           ": max_boxes and min_area must be at least 1");
  return {max_boxes, connectivity, min_area};
}

inline void check_thresholds(const Tensor& cams, const Tensor& thresholds) {
  WS_CHECK(thresholds.dim() == 1 && thresholds.size(0) == cams.size(0) &&
               thresholds.scalar_type() == accumulate_dtype(cams.scalar_type()) &&
               thresholds.get_device_index() == cams.get_device_index(),
           "wsfast::cam_boxes: thresholds must hold one accumulator value per map, on its device");
}

struct BoxTensors {
  Tensor boxes, areas, counts;

  BoxTensors(const Tensor& like, const Shape& shape, int64_t max_boxes)
      : boxes(new_tensor(like, {shape.images, max_boxes, 4}, ScalarType::Int)),
        areas(new_tensor(like, {shape.images, max_boxes}, ScalarType::Int)),
        counts(new_tensor(like, {shape.images}, ScalarType::Int)) {}
};

inline Tensor new_scores(const Tensor& like, const Shape& shape, int64_t max_boxes) {
  return new_tensor(like, {shape.images, max_boxes}, ScalarType::Float);
}

}  // namespace wsfast::boxes
