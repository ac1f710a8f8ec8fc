// Arguments of the crf ops, checked once for both backends.
#pragma once

#include <algorithm>
#include <limits>
#include <optional>

#include "../../core/torch_api.h"
#include "crf_math.h"

namespace wsfast::crf {

inline Direction direction_named(const char* op, const std::string& name) {
  WS_CHECK(name == "symmetric" || name == "forward" || name == "transpose", "wsfast::", op,
           ": unknown direction ", name);
  return name == "symmetric" ? Direction::symmetric
         : name == "forward" ? Direction::forward
                             : Direction::transpose;
}

inline void check_points(const char* op, int64_t points, int64_t d) {
  WS_CHECK(d >= 1 && d <= kLargestDimension, "wsfast::", op, ": features must have 1 to 8 dimensions");
  WS_CHECK(points >= 1 && points * (d + 1) < std::numeric_limits<int32_t>::max(), "wsfast::", op,
           ": points times vertices must be between 1 and 2^31, got ", points, " x ", d + 1);
}

inline void check_sigmas(const char* op, const Tensor& image, const std::vector<double>& sigma_rgb,
                  double sigma_xy) {
  check_rank(op, "image", image, 4);
  WS_CHECK(static_cast<int64_t>(sigma_rgb.size()) == image.size(1), "wsfast::", op,
           ": sigma_rgb must have one value per channel");
  WS_CHECK(sigma_xy > 0 && std::all_of(sigma_rgb.begin(), sigma_rgb.end(), [](double s) { return s > 0; }),
           "wsfast::", op, ": sigmas must be positive");
}

struct EnergyArgs {
  int64_t images, channels;
  Tensor image, values;
  std::optional<Tensor> roi;
};

inline EnergyArgs energy_args(const char* op, const Tensor& image, const Tensor& values,
                              const std::optional<Tensor>& roi,
                              const std::vector<double>& sigma_rgb, double sigma_xy) {
  check_sigmas(op, image, sigma_rgb, sigma_xy);
  check_rank(op, "values", values, 4);
  const int64_t images = values.size(0), channels = values.size(1);
  WS_CHECK(image.size(0) == images && image.size(2) == values.size(2) &&
               image.size(3) == values.size(3),
           "wsfast::", op, ": image and values must share N, H and W");
  check_same_device(op, image, values);
  const ScalarType sum_dtype = accumulate_dtype(values.scalar_type());
  std::optional<Tensor> mask;
  if (roi.has_value()) {
    WS_CHECK(roi->scalar_type() == sum_dtype && roi->numel() * channels == values.numel(),
             "wsfast::", op, ": roi must be (N, H, W) in the dtype of sums");
    check_same_device(op, *roi, values);
    mask = as_contiguous(*roi);
  }
  return {images, channels, as_contiguous(image), as_contiguous(values), mask};
}

// Energies (N, C), in the dtype of sums, and what is filtered, like `values`; empty if nobody wants it.
inline std::pair<Tensor, Tensor> new_energies(const Tensor& values, bool with_filtered) {
  const ScalarType dtype = values.scalar_type();
  return {new_tensor(values, {values.size(0), values.size(1)}, accumulate_dtype(dtype)),
          new_tensor(values, with_filtered ? sizes_of(values) : std::vector<int64_t>{0}, dtype)};
}

// Values on a kept lattice, all contiguous.
struct LatticeArgs {
  Tensor values, vertices, weights, neighbours, offsets;
};

inline LatticeArgs lattice_args(const char* op, const Tensor& values, const Tensor& vertices,
                                const Tensor& weights, const Tensor& neighbours,
                                const Tensor& offsets) {
  check_rank(op, "values", values, 3);
  check_rank(op, "vertices", vertices, 3);
  check_rank(op, "neighbours", neighbours, 3);
  WS_CHECK(weights.scalar_type() == accumulate_dtype(values.scalar_type()),
           "wsfast::", op, ": weights must have the dtype that values are summed in");
  WS_CHECK(vertices.scalar_type() == ScalarType::Int && neighbours.scalar_type() == ScalarType::Int &&
               offsets.scalar_type() == ScalarType::Long,
           "wsfast::", op, ": lattice tensors must be int32, offsets int64");
  for (const Tensor* part : {&vertices, &weights, &neighbours, &offsets}) {
    check_same_device(op, *part, values);
  }
  WS_CHECK(vertices.size(0) == values.size(0) && vertices.size(1) == values.size(2) &&
               weights.numel() == vertices.numel() && offsets.numel() == values.size(0) + 1 &&
               neighbours.size(0) == vertices.size(2),
           "wsfast::", op, ": values must have the lattice's images and points");
  return {as_contiguous(values), as_contiguous(vertices), as_contiguous(weights),
          as_contiguous(neighbours), as_contiguous(offsets)};
}

}  // namespace wsfast::crf
