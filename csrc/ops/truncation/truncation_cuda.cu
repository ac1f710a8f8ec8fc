// CUDA launcher of the truncation room.
#include <cmath>
#include <cstdint>

#include "truncation_args.h"
#include "truncation_launch.cuh"

namespace wsfast::truncation {
namespace {

Maps maps_of(const char* op, const Tensor& grads, double percentile, bool per_sample) {
  check_rank(op, "grads", grads, 4);
  check_percentile(op, percentile);
  const Maps maps = {grads.size(0), grads.size(1), grads.size(2) * grads.size(3), per_sample};
  WS_CHECK(maps.count() <= INT32_MAX, "wsfast::", op, ": too many feature maps, got ",
           maps.count());
  return maps;
}

template <class T>
Truncation<T> truncation_of(const Maps& maps, double percentile, const Tensor& grads) {
  int shared_bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    grads.get_device_index()));
  return Truncation<T>(maps, percentile, shared_bytes);
}

Tensor new_row_tensor(const Tensor& like, const Maps& maps, ScalarType dtype) {
  if (maps.per_sample) return new_tensor(like, {maps.samples}, dtype);
  return new_tensor(like, {maps.samples, maps.channels}, dtype);
}

Tensor new_thresholds(const Tensor& grads, const Maps& maps) {
  Tensor thresholds = new_row_tensor(grads, maps, grads.scalar_type());
  if (maps.row_length() == 0) torch::stable::fill_(thresholds, infinity<double>());
  return thresholds;
}

Tensor new_zero_bytes(const Tensor& like, int64_t bytes) {
  return torch::stable::new_zeros(like, std::vector<int64_t>{bytes}, ScalarType::Byte);
}

template <class T>
void select(const Truncation<T>& truncation, const Tensor& grads,
            const typename Truncation<T>::Kept& kept) {
  using State = Selection<typename Truncation<T>::Key>;
  const auto launch = [&](const typename Truncation<T>::Scratch& scratch) {
    truncation.select(read_ptr<T>(grads), scratch, kept, current_stream(grads));
    check_launch();
  };
  if (!truncation.has_tiles()) return launch({nullptr, nullptr});
  const Tensor selections =
      new_zero_bytes(grads, truncation.maps().rows() * static_cast<int64_t>(sizeof(State)));
  const Tensor histograms = new_zero_bytes(grads, truncation.histogram_bytes());
  launch({write_ptr<State>(selections), write_ptr<uint8_t>(histograms)});
}

template <class T>
void interpolate(const Truncation<T>& truncation, const Tensor& grads, const Tensor& thresholds,
                 const Tensor& out) {
  using State = Below<typename Truncation<T>::Key>;
  const auto launch = [&](State* below) {
    truncation.interpolate(read_ptr<T>(grads), read_ptr<T>(thresholds), below, write_ptr<T>(out),
                           current_stream(grads));
    check_launch();
  };
  if (!truncation.has_tiles()) return launch(nullptr);
  const Tensor below =
      new_zero_bytes(grads, truncation.maps().rows() * static_cast<int64_t>(sizeof(State)));
  launch(write_ptr<State>(below));
}

Tensor positive_percentile_cuda(const Tensor& grads, double percentile, bool per_sample) {
  const Maps maps = maps_of("positive_percentile", grads, percentile, per_sample);
  const DeviceGuard guard(grads.get_device_index());
  const Tensor g = as_contiguous(grads);
  if (maps.row_length() == 0) return new_thresholds(g, maps);
  const Tensor thresholds = new_row_tensor(g, maps, g.scalar_type());
  Tensor out = new_row_tensor(g, maps, g.scalar_type());
  if (maps.rows() == 0) return out;
  dispatch_floating(g.scalar_type(), "positive_percentile", [&]<class T>() {
    const auto truncation = truncation_of<T>(maps, percentile, g);
    select<T>(truncation, g, {write_ptr<T>(thresholds), nullptr, nullptr});
    interpolate<T>(truncation, g, thresholds, out);
  });
  return out;
}

std::tuple<Tensor, Tensor> truncate_gradients_cuda(const Tensor& grads, double percentile,
                                                   bool per_sample) {
  const Maps maps = maps_of("truncate_gradients", grads, percentile, per_sample);
  const DeviceGuard guard(grads.get_device_index());
  const Tensor g = as_contiguous(grads);
  Tensor out = new_tensor(g, sizes_of(g), g.scalar_type());
  Tensor thresholds = new_thresholds(g, maps);
  dispatch_floating(g.scalar_type(), "truncate_gradients", [&]<class T>() {
    select<T>(truncation_of<T>(maps, percentile, g), g,
              {write_ptr<T>(thresholds), write_ptr<T>(out), nullptr});
  });
  return {out, thresholds};
}

struct CamTensors {
  Tensor activations, grads, cams, thresholds;
};

CamTensors prepare_cam(const char* op, const Tensor& activations, const Tensor& grads,
                       const Maps& maps, bool accumulate_output) {
  check_same_kind(op, activations, grads);
  WS_CHECK(sizes_of(activations) == sizes_of(grads), "wsfast::", op,
           ": activations and grads must have one shape");
  const ScalarType dtype = grads.scalar_type();
  return {as_contiguous(activations), as_contiguous(grads),
          new_tensor(grads, {maps.samples, grads.size(2), grads.size(3)},
                     accumulate_output ? accumulate_dtype(dtype) : dtype),
          new_thresholds(grads, maps)};
}

// Calls body.operator()<T, Out>() for the input dtype and the output it asks for.
template <class Body>
void dispatch_cam(const char* op, ScalarType dtype, bool accumulate_output, const Body& body) {
  dispatch_floating(dtype, op, [&]<class T>() {
    if (accumulate_output) {
      body.template operator()<T, acc_t<T>>();
    } else {
      body.template operator()<T, T>();
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> truncated_gradcam_cuda(const Tensor& activations,
                                                          const Tensor& grads, double percentile,
                                                          bool per_sample,
                                                          bool accumulate_output) {
  constexpr auto op = "truncated_gradcam";
  const Maps maps = maps_of(op, grads, percentile, per_sample);
  const DeviceGuard guard(grads.get_device_index());
  const CamTensors t = prepare_cam(op, activations, grads, maps, accumulate_output);
  Tensor weights =
      new_tensor(grads, {maps.samples, maps.channels}, accumulate_dtype(grads.scalar_type()));
  if (maps.pixels == 0) torch::stable::fill_(weights, std::nan(""));  // the mean of nothing
  dispatch_cam(op, grads.scalar_type(), accumulate_output, [&]<class T, class Out>() {
    using A = acc_t<T>;
    const auto truncation = truncation_of<T>(maps, percentile, grads);
    select<T>(truncation, t.grads, {write_ptr<T>(t.thresholds), nullptr, write_ptr<A>(weights)});
    truncation.grad_cam(read_ptr<T>(t.activations), read_ptr<A>(weights), write_ptr<Out>(t.cams),
                        current_stream(grads));
    check_launch();
  });
  return {t.cams, weights, t.thresholds};
}

std::tuple<Tensor, Tensor> truncated_layercam_cuda(const Tensor& activations, const Tensor& grads,
                                                   double percentile, bool per_sample,
                                                   bool accumulate_output) {
  constexpr auto op = "truncated_layercam";
  const Maps maps = maps_of(op, grads, percentile, per_sample);
  const DeviceGuard guard(grads.get_device_index());
  const CamTensors t = prepare_cam(op, activations, grads, maps, accumulate_output);
  dispatch_cam(op, grads.scalar_type(), accumulate_output, [&]<class T, class Out>() {
    const auto truncation = truncation_of<T>(maps, percentile, grads);
    select<T>(truncation, t.grads, {write_ptr<T>(t.thresholds), nullptr, nullptr});
    truncation.layer_cam(read_ptr<T>(t.activations), read_ptr<T>(t.grads),
                         read_ptr<T>(t.thresholds), write_ptr<Out>(t.cams), current_stream(grads));
    check_launch();
  });
  return {t.cams, t.thresholds};
}

}  // namespace
}  // namespace wsfast::truncation

STABLE_TORCH_LIBRARY_IMPL(wsfast, CUDA, m) {
  m.impl("positive_percentile", TORCH_BOX(&wsfast::truncation::positive_percentile_cuda));
  m.impl("truncate_gradients", TORCH_BOX(&wsfast::truncation::truncate_gradients_cuda));
  m.impl("truncated_gradcam", TORCH_BOX(&wsfast::truncation::truncated_gradcam_cuda));
  m.impl("truncated_layercam", TORCH_BOX(&wsfast::truncation::truncated_layercam_cuda));
}
