// The fusion kernels, launched as fusion_cuda.cu launches them.
#include <map>

#include "../../csrc/ops/fusion/fusion_backward_launch.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace fu = wsfast::fusion;

const std::map<std::string, fu::Norm> kNorms = {
    {"none", fu::Norm::none}, {"minmax", fu::Norm::minmax}, {"max", fu::Norm::max}};
const std::map<std::string, fu::Reduce> kReduces = {
    {"sum", fu::Reduce::sum}, {"max", fu::Reduce::max}, {"prod", fu::Reduce::prod}};

// Every layer's maps begin `offset` values behind an aligned address.
template <class T>
py::tuple fuse_at(int64_t offset, const std::vector<Array<T>>& cams,
                  const Array<acc_t<T>>& weights, int64_t height, int64_t width,
                  const std::string& layer_norm, const std::string& reduce,
                  const std::string& norm, double eps) {
  const py::ssize_t images = cams[0].shape(0);
  fu::Fusion<T> fusion(images, height, width, kNorms.at(layer_norm), kReduces.at(reduce),
                       kNorms.at(norm), eps);
  std::vector<DeviceArray<T>> maps;
  for (const Array<T>& layer : cams) {
    DeviceArray<T>& behind = maps.emplace_back(offset + layer.size());
    if (layer.size() > 0) {
      std::memcpy(static_cast<void*>(behind.data() + offset), layer.data(), layer.nbytes());
    }
    fusion.add_layer(behind.data() + offset, layer.shape(1), layer.shape(2));
  }
  DeviceArray<acc_t<T>> w(weights);
  DeviceArray<fu::Stats<acc_t<T>>> layer_stats(fusion.layer_stats_count());
  DeviceArray<fu::Stats<acc_t<T>>> tile_stats(fusion.tile_stats_count());
  DeviceArray<acc_t<T>> reduced(fusion.needs_reduced() ? images * height * width : 0);
  DeviceArray<T> out(images * height * width);
  DeviceArray<bool> finite(images);
  fusion.launch(w.data(),
                {layer_stats.data(), tile_stats.data(), reduced.data(), out.data(), finite.data()},
                nullptr);
  return py::make_tuple(out.numpy({images, height, width}), finite.numpy());
}

template <class T>
py::tuple fuse(const std::vector<Array<T>>& cams, const Array<acc_t<T>>& weights, int64_t height,
               int64_t width, const std::string& layer_norm, const std::string& reduce,
               const std::string& norm, double eps) {
  return fuse_at<T>(0, cams, weights, height, width, layer_norm, reduce, norm, eps);
}

template <class T>
py::tuple fuse_backward(const Array<T>& grad, const std::vector<Array<T>>& cams,
                        const Array<acc_t<T>>& weights, const std::string& layer_norm,
                        const std::string& norm, double eps) {
  const py::ssize_t images = grad.shape(0), height = grad.shape(1), width = grad.shape(2);
  fu::Fusion<T> fusion(images, height, width, kNorms.at(layer_norm), fu::Reduce::sum,
                       kNorms.at(norm), eps);
  std::vector<DeviceArray<T>> maps, grad_cams;
  std::vector<T*> grads;
  for (const Array<T>& layer : cams) {
    maps.emplace_back(layer);
    fusion.add_layer(maps.back().data(), layer.shape(1), layer.shape(2));
    grads.push_back(grad_cams.emplace_back(layer.size()).data());
  }
  const fu::FusionGradient<T> gradient(fusion, grads);
  DeviceArray<T> upper(grad);
  DeviceArray<acc_t<T>> w(weights), grad_weights(cams.size());
  DeviceArray<bool> finite(images);
  DeviceArray<fu::Stats<acc_t<T>>> layer_stats(fusion.layer_stats_count());
  DeviceArray<fu::Stats<acc_t<T>>> tile_stats(fusion.tile_stats_count());
  DeviceArray<acc_t<T>> upstream(images * height * width), resized(gradient.resized_count());
  DeviceArray<fu::GradientSums<acc_t<T>>> output_sums(gradient.output_sums_count());
  DeviceArray<fu::GradientSums<acc_t<T>>> layer_sums(gradient.layer_sums_count());
  gradient.launch(upper.data(), w.data(),
                  {layer_stats.data(), tile_stats.data(), upstream.data(), resized.data(),
                   finite.data(), output_sums.data(), layer_sums.data()},
                  grad_weights.data(), nullptr);
  py::list found;
  for (size_t l = 0; l < cams.size(); ++l) {
    found.append(grad_cams[l].numpy({images, cams[l].shape(1), cams[l].shape(2)}));
  }
  return py::make_tuple(found, grad_weights.numpy());
}

}  // namespace

void bind_fusion(py::module_& m) {
  def_floating(m, "fuse_cams", []<class Tag>(Tag) { return &fuse<typename Tag::type>; });
  def_floating(m, "fuse_cams_at", []<class Tag>(Tag) { return &fuse_at<typename Tag::type>; });
  def_floating(m, "fuse_cams_backward",
               []<class Tag>(Tag) { return &fuse_backward<typename Tag::type>; });
}

}  // namespace wsfast::bind
