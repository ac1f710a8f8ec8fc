// The arguments of fuse_cams and its gradient, checked once for both backends.
#pragma once

#include <string>
#include <vector>

#include "../../core/torch_api.h"
#include "fusion_math.h"

namespace wsfast::fusion {

struct FuseArgs {
  std::vector<Tensor> cams;  // contiguous
  int64_t images, height, width;
  Norm layer_norm;
  Reduce reduce;
  Norm norm;
  double eps;
};

inline Norm norm_named(const std::string& name) {
  WS_CHECK(name == "none" || name == "minmax" || name == "max",
           "wsfast::fuse_cams: unknown normalisation ", name);
  return name == "none" ? Norm::none : name == "max" ? Norm::max : Norm::minmax;
}

inline Reduce reduce_named(const std::string& name) {
  WS_CHECK(name == "sum" || name == "max" || name == "prod",
           "wsfast::fuse_cams: unknown reduction ", name);
  return name == "sum" ? Reduce::sum : name == "max" ? Reduce::max : Reduce::prod;
}

inline FuseArgs fuse_args(const std::vector<Tensor>& cams, const Tensor& weights, int64_t height,
                          int64_t width, const std::string& layer_norm, const std::string& reduce,
                          const std::string& norm, double eps) {
  WS_CHECK(!cams.empty(), "wsfast::fuse_cams: cams must not be empty");
  WS_CHECK(height > 0 && width > 0, "wsfast::fuse_cams: size must be positive");
  WS_CHECK(weights.numel() == static_cast<int64_t>(cams.size()) &&
               weights.scalar_type() == accumulate_dtype(cams[0].scalar_type()),
           "wsfast::fuse_cams: weights must hold one accumulator value per layer");
  WS_CHECK(weights.get_device_index() == cams[0].get_device_index(),
           "wsfast::fuse_cams: weights must live on the device of cams");
  FuseArgs args{{}, cams[0].size(0), height, width, norm_named(layer_norm), reduce_named(reduce),
                norm_named(norm), eps};
  for (const Tensor& layer : cams) {
    check_rank("fuse_cams", "cams", layer, 3);
    check_same_kind("fuse_cams", cams[0], layer);
    WS_CHECK(layer.size(0) == args.images && layer.size(1) > 0 && layer.size(2) > 0,
             "wsfast::fuse_cams: cams must share N and have h, w >= 1");
    args.cams.push_back(as_contiguous(layer));
  }
  return args;
}

// Of the gradient of a sum of layers: `grad` is that of the result.
inline FuseArgs fuse_backward_args(const Tensor& grad, const std::vector<Tensor>& cams,
                                   const Tensor& weights, const std::string& layer_norm,
                                   const std::string& norm, double eps) {
  check_rank("fuse_cams_backward", "grad", grad, 3);
  const FuseArgs args =
      fuse_args(cams, weights, grad.size(1), grad.size(2), layer_norm, "sum", norm, eps);
  check_same_kind("fuse_cams_backward", cams[0], grad);
  WS_CHECK(grad.size(0) == args.images, "wsfast::fuse_cams_backward: grad must share N with cams");
  return args;
}

}  // namespace wsfast::fusion
