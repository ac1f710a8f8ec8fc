// The fusion kernels, launched as fusion_cuda.cu launches them.
#include <map>

#include "../../csrc/ops/fusion/fusion_launch.cuh"
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

}  // namespace

void bind_fusion(py::module_& m) {
  def_floating(m, "fuse_cams", []<class Tag>(Tag) { return &fuse<typename Tag::type>; });
  def_floating(m, "fuse_cams_at", []<class Tag>(Tag) { return &fuse_at<typename Tag::type>; });
}

}  // namespace wsfast::bind
