// Schemas and CPU kernels of the fusion room.
#include "fusion_backward.h"

#define WS_SIMD_BODY "../ops/fusion/fusion_simd.h"
#include "../../core/foreach_simd.h"

namespace wsfast::fusion {
namespace {

WS_DEFINE_DISPATCH_SIMD(Rows)

std::tuple<Tensor, Tensor> fuse_cams_cpu(const std::vector<Tensor>& cams, const Tensor& weights,
                                         int64_t height, int64_t width, std::string layer_norm,
                                         std::string reduce, std::string norm, double eps) {
  const FuseArgs args = fuse_args(cams, weights, height, width, layer_norm, reduce, norm, eps);
  const ScalarType dtype = cams[0].scalar_type();
  Tensor out = new_tensor(cams[0], {args.images, height, width}, dtype);
  Tensor finite = new_tensor(cams[0], {args.images}, ScalarType::Bool);
  const Tensor w = as_contiguous(weights);
  dispatch_floating(dtype, "fuse_cams", [&]<class T>() {
    dispatch_simd([&]<class Rows>() {
      Fusion<Rows, T>(args, read_ptr<acc_t<T>>(w)).fuse(write_ptr<bool>(finite), write_ptr<T>(out));
    });
  });
  return {out, finite};
}

std::tuple<std::vector<Tensor>, Tensor> fuse_cams_backward_cpu(
    const Tensor& grad, const std::vector<Tensor>& cams, const Tensor& weights,
    std::string layer_norm, std::string norm, double eps) {
  const FuseArgs args = fuse_backward_args(grad, cams, weights, layer_norm, norm, eps);
  const ScalarType dtype = grad.scalar_type();
  std::vector<Tensor> grad_cams;
  for (const Tensor& layer : args.cams) grad_cams.push_back(new_tensor(layer, sizes_of(layer), dtype));
  Tensor grad_weights = new_tensor(weights, sizes_of(weights), weights.scalar_type());
  const Tensor w = as_contiguous(weights), g = as_contiguous(grad);
  dispatch_floating(dtype, "fuse_cams_backward", [&]<class T>() {
    std::vector<T*> outputs;
    for (const Tensor& layer : grad_cams) outputs.push_back(write_ptr<T>(layer));
    dispatch_simd([&]<class Rows>() {
      FusionBackward<Rows, T>(args, read_ptr<acc_t<T>>(w), read_ptr<T>(g))
          .run(outputs, write_ptr<acc_t<T>>(grad_weights));
    });
  });
  return {grad_cams, grad_weights};
}

}  // namespace
}  // namespace wsfast::fusion

STABLE_TORCH_LIBRARY_FRAGMENT(wsfast, m) {
  m.def(
      "fuse_cams(Tensor[] cams, Tensor weights, SymInt height, SymInt width, str layer_norm,"
      " str reduce, str norm, float eps) -> (Tensor, Tensor)");
  m.def(
      "fuse_cams_backward(Tensor grad, Tensor[] cams, Tensor weights, str layer_norm, str norm,"
      " float eps) -> (Tensor[], Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(wsfast, CPU, m) {
  m.impl("fuse_cams", TORCH_BOX(&wsfast::fusion::fuse_cams_cpu));
  m.impl("fuse_cams_backward", TORCH_BOX(&wsfast::fusion::fuse_cams_backward_cpu));
}
