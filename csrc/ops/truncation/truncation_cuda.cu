// CUDA launchers of the truncation room.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../../core/torch_api.h"
#include "truncation_args.h"
#include "truncation_cam_kernels.cuh"

namespace wsfast::truncation {
namespace {

constexpr int64_t kLongRow = int64_t{1} << 17;  // longer rows are counted by many blocks
constexpr int64_t kSmallMap = int64_t{1} << 14;  // a thread per pixel of these is too few

dim3 grid_for(int64_t elements) {
  constexpr int64_t most_blocks = int64_t{1} << 20;
  return dim3(static_cast<unsigned>(
      std::min(most_blocks, (elements + kThreads - 1) / kThreads)));
}

struct Launch {
  int64_t samples, channels, pixels;
  bool per_sample;
  double percentile;
  cudaStream_t stream;

  int64_t maps() const { return samples * channels; }
  int64_t rows() const { return per_sample ? samples : maps(); }
  int64_t row_length() const { return per_sample ? channels * pixels : pixels; }
  bool has_long_rows() const { return row_length() > kLongRow; }
  int64_t tiles() const { return ceil_div(row_length(), kTileLength); }
  dim3 tile_grid() const { return dim3(static_cast<unsigned>(rows() * tiles())); }
  int64_t maps_per_row() const { return per_sample ? channels : 1; }

  // Threads that share a pixel of a CAM. Of a map's size alone: no sum depends on the batch.
  int groups() const { return pixels <= kSmallMap ? kChannelGroups : 1; }
  dim3 cam_grid() const { return grid_for(samples * pixels * groups()); }
};

Launch launch_of(const char* op, const Tensor& grads, double percentile, bool per_sample) {
  check_rank(op, "grads", grads, 4);
  check_percentile(op, percentile);
  const int64_t maps = grads.size(0) * grads.size(1);
  WS_CHECK(maps <= INT32_MAX, "wsfast::", op, ": too many feature maps, got ", maps);
  return {grads.size(0), grads.size(1), grads.size(2) * grads.size(3), per_sample, percentile,
          current_stream(grads)};
}

Tensor new_row_tensor(const Tensor& like, const Launch& launch, ScalarType dtype) {
  if (launch.per_sample) return new_tensor(like, {launch.samples}, dtype);
  return new_tensor(like, {launch.samples, launch.channels}, dtype);
}

// Bytes of dynamic shared memory that a block of select_row_kernel may have.
template <class T>
int64_t cache_limit(const Tensor& tensor) {
  constexpr int64_t lists = kListed<T, kMostThreads<T>> * sizeof(T), others = kBins * 4 + 1024;
  int bytes = 0;
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                    tensor.get_device_index()));
  return bytes - lists - others;
}

template <class T, int PerLane>
void select_by_warps(const Tensor& grads, const Launch& launch, T* thresholds, T* truncated,
                     acc_t<T>* weights) {
  const auto kernel = select_short_row_kernel<T, PerLane>;
  const int64_t blocks = ceil_div(launch.rows() * kWarpSize, kShortThreads);
  WS_LAUNCH(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kShortThreads), 0, launch.stream,
            read_ptr<T>(grads), launch.rows(), launch.row_length(), launch.percentile, thresholds,
            truncated, weights);
}

template <class T, bool Cached, int Threads>
void select_by_blocks(const Tensor& grads, const Launch& launch, T* thresholds, T* truncated,
                      acc_t<T>* weights) {
  const auto kernel = select_row_kernel<T, Cached, Threads>;
  const int64_t n = launch.row_length();
  if (Cached) {  // always the same value: another thread may set it between here and the launch
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                    static_cast<int>(cache_limit<T>(grads))));
  }
  WS_LAUNCH(kernel, dim3(static_cast<unsigned>(launch.rows())), dim3(Threads),
            Cached ? n * sizeof(T) : 0, launch.stream, read_ptr<T>(grads), n, launch.percentile,
            thresholds, truncated, weights);
}

// Rows of one warp or block each.
template <class T>
void select_short_rows(const Tensor& grads, const Launch& launch, T* thresholds, T* truncated,
                       acc_t<T>* weights) {
  const auto select = [&](auto function) {
    function(grads, launch, thresholds, truncated, weights);
  };
  const int64_t n = launch.row_length();
  if (n <= 8 * kWarpSize) return select(select_by_warps<T, 8>);
  if constexpr (sizeof(T) < 8) {  // 32 keys of 64 bits would take too many registers
    if (n <= 32 * kWarpSize) return select(select_by_warps<T, 32>);
  }
  if (n * static_cast<int64_t>(sizeof(T)) > cache_limit<T>(grads)) {
    select(select_by_blocks<T, false, kMostThreads<T>>);
  } else if (n <= 4096) {
    select(select_by_blocks<T, true, 128>);
  } else if (n <= 16384) {
    select(select_by_blocks<T, true, 256>);
  } else {
    select(select_by_blocks<T, true, kMostThreads<T>>);
  }
}

// Count holds the number of values of a row.
template <class T, class Count>
void select_long_rows(const Tensor& grads, const Launch& launch, T* thresholds) {
  using State = Selection<typename RowKey<T>::Key>;
  const int64_t rows = launch.rows();
  const Tensor histograms = torch::stable::new_zeros(
      grads, std::vector<int64_t>{rows, kBins * static_cast<int64_t>(sizeof(Count))},
      ScalarType::Byte);
  const Tensor states = torch::stable::new_zeros(
      grads, std::vector<int64_t>{rows, static_cast<int64_t>(sizeof(State))}, ScalarType::Byte);
  auto* counts = write_ptr<Count>(histograms);
  auto* selections = write_ptr<State>(states);
  const auto count = count_digits_kernel<T, Count>;
  const auto pick = pick_digit_kernel<T, Count>;
  for (int level = 0; level < kLevels<T>; ++level) {
    WS_LAUNCH(count, launch.tile_grid(), dim3(kThreads), 0, launch.stream, read_ptr<T>(grads),
              launch.row_length(), launch.tiles(), level, selections, counts);
    WS_LAUNCH(pick, dim3(static_cast<unsigned>(rows)), dim3(kThreads), 0, launch.stream, counts,
              level, launch.percentile, selections, thresholds);
  }
}

// Thresholds of every row and, where asked by non-null pointers, the truncated gradients and the
// mean kept gradient of every map.
template <class T>
void select_rows(const Tensor& grads, const Launch& launch, T* thresholds, T* truncated,
                 acc_t<T>* weights) {
  if (launch.maps() == 0 || launch.pixels == 0) return;
  const int64_t n = launch.row_length();
  const bool long_rows = launch.has_long_rows();
  const bool weigh_apart = weights != nullptr && (long_rows || launch.per_sample);
  if (long_rows) {
    if (n <= UINT32_MAX) {
      select_long_rows<T, uint32_t>(grads, launch, thresholds);
    } else {
      select_long_rows<T, unsigned long long>(grads, launch, thresholds);
    }
    if (truncated != nullptr) {
      WS_LAUNCH(keep_kernel<T>, launch.tile_grid(), dim3(kThreads), 0, launch.stream,
                read_ptr<T>(grads), n, launch.tiles(), thresholds, truncated);
    }
  } else {
    select_short_rows(grads, launch, thresholds, truncated, weigh_apart ? nullptr : weights);
  }
  if (weigh_apart) {
    WS_LAUNCH(map_weight_kernel<T>, dim3(static_cast<unsigned>(launch.maps())), dim3(kThreads), 0,
              launch.stream, read_ptr<T>(grads), launch.pixels, launch.maps_per_row(), thresholds,
              weights);
  }
  check_launch();
}

template <class T>
void interpolate_long_rows(const Tensor& grads, const Launch& launch, const T* thresholds,
                           T* out) {
  using State = Below<typename RowKey<T>::Key>;
  const Tensor states = torch::stable::new_zeros(
      grads, std::vector<int64_t>{launch.rows(), static_cast<int64_t>(sizeof(State))},
      ScalarType::Byte);
  auto* below = write_ptr<State>(states);
  WS_LAUNCH(look_below_kernel<T>, launch.tile_grid(), dim3(kThreads), 0, launch.stream,
            read_ptr<T>(grads), launch.row_length(), launch.tiles(), thresholds, below);
  WS_LAUNCH(interpolate_long_kernel<T>, grid_for(launch.rows()), dim3(kThreads), 0, launch.stream,
            below, launch.rows(), launch.percentile, thresholds, out);
}

Tensor positive_percentile_cuda(const Tensor& grads, double percentile, bool per_sample) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const Tensor g = as_contiguous(grads);
  const Launch launch = launch_of("positive_percentile", g, percentile, per_sample);
  const Tensor thresholds = new_row_tensor(g, launch, g.scalar_type());
  Tensor out = new_row_tensor(g, launch, g.scalar_type());
  if (launch.rows() == 0) return out;
  if (launch.row_length() == 0) {
    torch::stable::fill_(out, infinity<double>());
    return out;
  }
  dispatch_floating(g.scalar_type(), "positive_percentile", [&]<class T>() {
    select_rows<T>(g, launch, write_ptr<T>(thresholds), nullptr, nullptr);
    if (launch.has_long_rows()) {
      interpolate_long_rows<T>(g, launch, read_ptr<T>(thresholds), write_ptr<T>(out));
    } else {
      WS_LAUNCH(interpolate_kernel<T>, dim3(static_cast<unsigned>(launch.rows())), dim3(kThreads),
                0, launch.stream, read_ptr<T>(g), launch.row_length(), percentile,
                read_ptr<T>(thresholds), write_ptr<T>(out));
    }
    check_launch();
  });
  return out;
}

std::tuple<Tensor, Tensor> truncate_gradients_cuda(const Tensor& grads, double percentile,
                                                   bool per_sample) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const Tensor g = as_contiguous(grads);
  const Launch launch = launch_of("truncate_gradients", g, percentile, per_sample);
  Tensor out = new_tensor(g, sizes_of(g), g.scalar_type());
  Tensor thresholds = new_row_tensor(g, launch, g.scalar_type());
  if (launch.row_length() == 0) torch::stable::fill_(thresholds, infinity<double>());
  dispatch_floating(g.scalar_type(), "truncate_gradients", [&]<class T>() {
    select_rows<T>(g, launch, write_ptr<T>(thresholds), write_ptr<T>(out), nullptr);
  });
  return {out, thresholds};
}

struct CamTensors {
  Tensor activations, grads, cams, thresholds;
};

CamTensors prepare_cam(const char* op, const Tensor& activations, const Tensor& grads,
                       const Launch& launch, bool accumulate_output) {
  check_same_kind(op, activations, grads);
  WS_CHECK(sizes_of(activations) == sizes_of(grads), "wsfast::", op,
           ": activations and grads must have one shape");
  const ScalarType dtype = grads.scalar_type();
  Tensor thresholds = new_row_tensor(grads, launch, dtype);
  if (launch.row_length() == 0) torch::stable::fill_(thresholds, infinity<double>());
  return {as_contiguous(activations), as_contiguous(grads),
          new_tensor(grads, {launch.samples, grads.size(2), grads.size(3)},
                     accumulate_output ? accumulate_dtype(dtype) : dtype),
          thresholds};
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
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const Launch launch = launch_of("truncated_gradcam", grads, percentile, per_sample);
  const CamTensors t =
      prepare_cam("truncated_gradcam", activations, grads, launch, accumulate_output);
  Tensor weights = new_tensor(grads, {launch.samples, launch.channels},
                              accumulate_dtype(grads.scalar_type()));
  if (launch.pixels == 0) torch::stable::fill_(weights, std::nan(""));  // the mean of nothing
  dispatch_cam("truncated_gradcam", grads.scalar_type(), accumulate_output, [&]<class T, class Out>() {
    select_rows<T>(t.grads, launch, write_ptr<T>(t.thresholds), nullptr,
                   write_ptr<acc_t<T>>(weights));
    if (launch.samples * launch.pixels == 0) return;
    const auto kernel = weighted_cam_kernel<T, Out>;
    WS_LAUNCH(kernel, launch.cam_grid(), dim3(kThreads), 0, launch.stream,
              read_ptr<T>(t.activations), read_ptr<acc_t<T>>(weights), launch.samples,
              launch.channels, launch.pixels, launch.groups(), write_ptr<Out>(t.cams));
    check_launch();
  });
  return {t.cams, weights, t.thresholds};
}

std::tuple<Tensor, Tensor> truncated_layercam_cuda(const Tensor& activations, const Tensor& grads,
                                                   double percentile, bool per_sample,
                                                   bool accumulate_output) {
  const torch::stable::accelerator::DeviceGuard guard(grads.get_device_index());
  const Launch launch = launch_of("truncated_layercam", grads, percentile, per_sample);
  const CamTensors t =
      prepare_cam("truncated_layercam", activations, grads, launch, accumulate_output);
  dispatch_cam("truncated_layercam", grads.scalar_type(), accumulate_output, [&]<class T, class Out>() {
    select_rows<T>(t.grads, launch, write_ptr<T>(t.thresholds), nullptr, nullptr);
    if (launch.samples * launch.pixels == 0) return;
    const auto kernel = kept_product_cam_kernel<T, Out>;
    WS_LAUNCH(kernel, launch.cam_grid(), dim3(kThreads), 0, launch.stream,
              read_ptr<T>(t.activations), read_ptr<T>(t.grads), read_ptr<T>(t.thresholds),
              launch.maps_per_row(), launch.samples, launch.channels, launch.pixels,
              launch.groups(), write_ptr<Out>(t.cams));
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
