// CUDA launcher of the fusion room.
#include <cstdint>

#include "fusion_args.h"
#include "fusion_backward_launch.cuh"

namespace wsfast::fusion {
namespace {

// Scratch memory for `count` values of any type; never empty, so that it has an address.
Tensor new_scratch(const Tensor& like, int64_t count, size_t bytes) {
  return new_tensor(like, {std::max<int64_t>(1, count * static_cast<int64_t>(bytes))},
                    ScalarType::Byte);
}

void check_sides(int64_t height, int64_t width) {
  WS_CHECK(height <= kLargestSide && width <= kLargestSide,
           "wsfast::fuse_cams: maps must not be longer than 2^30 pixels, got ", height, " x ",
           width);
}

template <class T>
Fusion<T> fusion_of(const FuseArgs& args) {
  Fusion<T> fusion(args.images, args.height, args.width, args.layer_norm, args.reduce, args.norm,
                   args.eps);
  check_sides(args.height, args.width);
  for (const Tensor& cams : args.cams) {
    check_sides(cams.size(1), cams.size(2));
    fusion.add_layer(read_ptr<T>(cams), cams.size(1), cams.size(2));
  }
  return fusion;
}

void check_grid(const FuseArgs& args, int64_t blocks) {
  WS_CHECK(blocks <= INT32_MAX, "wsfast::fuse_cams: too many pixels, got ", args.images,
           " images of ", args.height, " x ", args.width);
}

template <class T>
void fuse(const FuseArgs& args, const Tensor& weights, const Tensor& out, const Tensor& finite) {
  using A = acc_t<T>;
  const Fusion<T> fusion = fusion_of<T>(args);
  check_grid(args, fusion.largest_grid());
  const Tensor layer_stats = new_scratch(out, fusion.layer_stats_count(), sizeof(Stats<A>));
  const Tensor tile_stats = new_scratch(out, fusion.tile_stats_count(), sizeof(Stats<A>));
  const Tensor reduced =
      new_scratch(out, fusion.needs_reduced() ? args.images * args.height * args.width : 0, sizeof(A));
  fusion.launch(read_ptr<A>(weights),
                {write_ptr<Stats<A>>(layer_stats), write_ptr<Stats<A>>(tile_stats),
                 write_ptr<A>(reduced), write_ptr<T>(out), write_ptr<bool>(finite)},
                current_stream(out));
  check_launch();
}

std::tuple<Tensor, Tensor> fuse_cams_cuda(const std::vector<Tensor>& cams, const Tensor& weights,
                                          int64_t height, int64_t width, std::string layer_norm,
                                          std::string reduce, std::string norm, double eps) {
  const FuseArgs args = fuse_args(cams, weights, height, width, layer_norm, reduce, norm, eps);
  const DeviceGuard guard(cams[0].get_device_index());
  Tensor out = new_tensor(cams[0], {args.images, height, width}, cams[0].scalar_type());
  Tensor finite = new_tensor(cams[0], {args.images}, ScalarType::Bool);
  const Tensor w = as_contiguous(weights);
  dispatch_floating(cams[0].scalar_type(), "fuse_cams",
                    [&]<class T>() { fuse<T>(args, w, out, finite); });
  return {out, finite};
}

template <class T>
void fuse_backward(const FuseArgs& args, const Tensor& grad, const Tensor& weights,
                   const std::vector<Tensor>& grad_cams, const Tensor& grad_weights) {
  using A = acc_t<T>;
  const Fusion<T> fusion = fusion_of<T>(args);
  std::vector<T*> grads;
  for (const Tensor& layer : grad_cams) grads.push_back(write_ptr<T>(layer));
  const FusionGradient<T> gradient(fusion, grads);
  check_grid(args, gradient.largest_grid());
  const Tensor layer_stats = new_scratch(grad, fusion.layer_stats_count(), sizeof(Stats<A>));
  const Tensor tile_stats = new_scratch(grad, fusion.tile_stats_count(), sizeof(Stats<A>));
  const Tensor upstream = new_scratch(grad, args.images * args.height * args.width, sizeof(A));
  const Tensor resized = new_scratch(grad, gradient.resized_count(), sizeof(A));
  const Tensor finite = new_scratch(grad, args.images, sizeof(bool));
  constexpr size_t sums_bytes = sizeof(GradientSums<A>);
  const Tensor output_sums = new_scratch(grad, gradient.output_sums_count(), sums_bytes);
  const Tensor layer_sums = new_scratch(grad, gradient.layer_sums_count(), sums_bytes);
  gradient.launch(read_ptr<T>(grad), read_ptr<A>(weights),
                  {write_ptr<Stats<A>>(layer_stats), write_ptr<Stats<A>>(tile_stats),
                   write_ptr<A>(upstream), write_ptr<A>(resized), write_ptr<bool>(finite),
                   write_ptr<GradientSums<A>>(output_sums),
                   write_ptr<GradientSums<A>>(layer_sums)},
                  write_ptr<A>(grad_weights), current_stream(grad));
  check_launch();
}

std::tuple<std::vector<Tensor>, Tensor> fuse_cams_backward_cuda(
    const Tensor& grad, const std::vector<Tensor>& cams, const Tensor& weights,
    std::string layer_norm, std::string norm, double eps) {
  const FuseArgs args = fuse_backward_args(grad, cams, weights, layer_norm, norm, eps);
  const DeviceGuard guard(grad.get_device_index());
  const ScalarType dtype = grad.scalar_type();
  std::vector<Tensor> grad_cams;
  for (const Tensor& layer : args.cams) {
    grad_cams.push_back(new_tensor(layer, sizes_of(layer), dtype));
  }
  const Tensor g = as_contiguous(grad), w = as_contiguous(weights);
  Tensor grad_weights = new_tensor(w, sizes_of(w), w.scalar_type());
  if (args.images == 0) torch::stable::zero_(grad_weights);
  dispatch_floating(dtype, "fuse_cams_backward",
                    [&]<class T>() { fuse_backward<T>(args, g, w, grad_cams, grad_weights); });
  return {grad_cams, grad_weights};
}

}  // namespace
}  // namespace wsfast::fusion

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("fuse_cams", TORCH_BOX(&wsfast::fusion::fuse_cams_cuda));
  m.impl("fuse_cams_backward", TORCH_BOX(&wsfast::fusion::fuse_cams_backward_cuda));
}
