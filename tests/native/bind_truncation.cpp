// The truncation kernels, launched as truncation_cuda.cu launches them.
#include <map>

#include "../../csrc/ops/truncation/truncation_launch.cuh"
#include "bind.h"

namespace wsfast::bind {
namespace {

namespace tr = wsfast::truncation;

constexpr int64_t kSharedBytes = 227 * 1024;  // Hopper's

const std::map<std::string, tr::Selector> kSelectors = {
    {"warp 256", tr::Selector::warp_256},     {"warp 1024", tr::Selector::warp_1024},
    {"block 128", tr::Selector::block_128},   {"block 256", tr::Selector::block_256},
    {"block most", tr::Selector::block_most}, {"uncached", tr::Selector::uncached},
    {"tiles", tr::Selector::tiles},           {"wide tiles", tr::Selector::wide_tiles}};

template <class T>
std::string selector_for(int64_t row_length, int64_t shared_bytes) {
  const tr::Selector chosen = tr::selector_for<T>(row_length, shared_bytes);
  for (const auto& [name, selector] : kSelectors) {
    if (selector == chosen) return name;
  }
  throw std::logic_error("a selector without a name");
}

// CAMs by two blocks, which take several rounds.
template <class T>
py::tuple truncation(const Array<T>& activations, const Array<T>& grads, double percentile,
                     bool per_sample, const std::string& selector, int groups) {
  using A = acc_t<T>;
  using Key = typename tr::Truncation<T>::Key;
  const std::vector<py::ssize_t> shape(grads.shape(), grads.shape() + 4);
  const tr::Maps maps = {shape[0], shape[1], shape[2] * shape[3], per_sample};
  const tr::Truncation<T> call(maps, percentile, kSharedBytes,
                               {kSelectors.at(selector), groups, 2});
  const int64_t rows = maps.rows();
  DeviceArray<T> a(activations), g(grads), thresholds(rows), deltas(rows), truncated(g.count());
  DeviceArray<A> weights(maps.count());
  DeviceArray<T> grad_cams(maps.samples * maps.pixels), layer_cams(maps.samples * maps.pixels);
  const int64_t tiled_rows = call.has_tiles() ? rows : 0;
  DeviceArray<tr::Selection<Key>> selections(tiled_rows);
  DeviceArray<uint8_t> histograms(call.has_tiles() ? call.histogram_bytes() : 0);
  DeviceArray<tr::Below<Key>> below(tiled_rows);
  const auto select = [&](T* kept, A* means) {
    selections.zero();
    histograms.zero();
    call.select(g.data(), {selections.data(), histograms.data()}, {thresholds.data(), kept, means},
                nullptr);
  };
  below.zero();
  select(truncated.data(), nullptr);
  call.interpolate(g.data(), thresholds.data(), below.data(), deltas.data(), nullptr);
  select(nullptr, weights.data());  // as CAMs ask
  call.grad_cam(a.data(), weights.data(), grad_cams.data(), nullptr);
  call.layer_cam(a.data(), g.data(), thresholds.data(), layer_cams.data(), nullptr);
  const std::vector<py::ssize_t> map_shape = {shape[0], shape[2], shape[3]};
  return py::make_tuple(truncated.numpy(shape), deltas.numpy(), grad_cams.numpy(map_shape),
                        layer_cams.numpy(map_shape), weights.numpy({shape[0], shape[1]}));
}

}  // namespace

void bind_truncation(py::module_& m) {
  def_floating(m, "truncation", []<class Tag>(Tag) { return &truncation<typename Tag::type>; });
  m.def("selector_for_2_bytes", &selector_for<half_t>);
  m.def("selector_for_4_bytes", &selector_for<float>);
  m.def("selector_for_8_bytes", &selector_for<double>);
}

}  // namespace wsfast::bind
