// CUDA launcher of the fusion room.
#include <cstdint>

#include "fusion_args.h"
#include "fusion_launch.cuh"

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
void fuse(const FuseArgs& args, const Tensor& weights, const Tensor& out, const Tensor& finite) {
  using A = acc_t<T>;
  Fusion<T> fusion(args.images, args.height, args.width, args.layer_norm, args.reduce, args.norm,
                   args.eps);
  for (const Tensor& cams : args.cams) {
    check_sides(cams.size(1), cams.size(2));
    fusion.add_layer(read_ptr<T>(cams), cams.size(1), cams.size(2));
  }
  WS_CHECK(fusion.largest_grid() <= INT32_MAX, "wsfast::fuse_cams: too many pixels, got ",
           args.images, " images of ", args.height, " x ", args.width);
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
  check_sides(height, width);
  const DeviceGuard guard(cams[0].get_device_index());
  Tensor out = new_tensor(cams[0], {args.images, height, width}, cams[0].scalar_type());
  Tensor finite = new_tensor(cams[0], {args.images}, ScalarType::Bool);
  const Tensor w = as_contiguous(weights);
  dispatch_floating(cams[0].scalar_type(), "fuse_cams",
                    [&]<class T>() { fuse<T>(args, w, out, finite); });
  return {out, finite};
}

}  // namespace
}  // namespace wsfast::fusion

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("fuse_cams", TORCH_BOX(&wsfast::fusion::fuse_cams_cuda));
}
