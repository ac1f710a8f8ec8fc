// The only door to torch: every other file sees wsfast::Tensor and the helpers below.
//
// Built on the LibTorch Stable ABI (TORCH_TARGET_VERSION in setup.py), so one binary serves every
// torch from 2.11 on. Autograd, autocast and fake kernels live in Python (torch.library).
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/shim_utils.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "device.h"

#define WS_CHECK(condition, ...) STD_TORCH_CHECK(condition, __VA_ARGS__)

namespace wsfast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Last line of defence behind the Python checks; messages start with "wsfast::<op>:".
inline void check_rank(const char* op, const char* name, const Tensor& tensor, int64_t rank) {
  WS_CHECK(tensor.dim() == rank, "wsfast::", op, ": ", name, " must have ", rank,
           " dimensions, got ", tensor.dim());
}

inline void check_same_device(const char* op, const Tensor& first, const Tensor& second) {
  WS_CHECK(first.get_device_index() == second.get_device_index(), "wsfast::", op,
           ": tensors must live on one device");
}

inline void check_same_kind(const char* op, const Tensor& first, const Tensor& second) {
  WS_CHECK(first.scalar_type() == second.scalar_type(), "wsfast::", op,
           ": tensors must share one dtype");
  check_same_device(op, first, second);
}

inline Tensor new_tensor(const Tensor& like, std::initializer_list<int64_t> sizes,
                         ScalarType dtype) {
  const std::vector<int64_t> shape(sizes);
  return torch::stable::new_empty(like, shape, dtype);
}

inline Tensor new_tensor(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  std::vector<int64_t> sizes(tensor.dim());
  for (size_t d = 0; d < sizes.size(); ++d) sizes[d] = tensor.size(static_cast<int64_t>(d));
  return sizes;
}

inline Tensor as_contiguous(const Tensor& tensor) { return torch::stable::contiguous(tensor); }

// float32 for the half types, the tensor's own dtype otherwise.
inline ScalarType accumulate_dtype(ScalarType dtype) {
  const bool half = dtype == ScalarType::Half || dtype == ScalarType::BFloat16;
  return half ? ScalarType::Float : dtype;
}

// Element pointers as the torch-free kernel types (same bits as torch's Half and BFloat16).
template <class T>
const T* read_ptr(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}
template <class T>
T* write_ptr(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls body.operator()<T>() with the kernel type of a floating dtype.
template <class Body>
void dispatch_floating(ScalarType dtype, const char* op, Body&& body) {
  switch (dtype) {
    case ScalarType::Float: return body.template operator()<float>();
    case ScalarType::Double: return body.template operator()<double>();
    case ScalarType::Half: return body.template operator()<half_t>();
    case ScalarType::BFloat16: return body.template operator()<bfloat16_t>();
    default: WS_CHECK(false, "wsfast::", op, ": unsupported dtype");
  }
}

// body(begin, end) over torch's own thread pool; nested calls run on the calling thread.
template <class Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (end > begin) torch::stable::parallel_for(begin, end, grain, body);
}

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// How many images at the end of a batch go one by one, each on as many threads as it has parts: those
// that the threads do not divide, where that takes less time than one more turn of all threads. Half of
// the work of an image is taken to be shared.
inline int64_t images_alone(int64_t images, int64_t parts) {
  const int64_t threads = thread_count(), rest = images % threads;
  return 2 * rest <= std::min(threads, parts) ? rest : 0;
}

// Task numbers, taken by whichever thread asks next.
class Tasks {
 public:
  Tasks(std::atomic<int64_t>& next, int64_t count, int64_t step)
      : next_(next), count_(count), step_(step) {}

  // The next task of this thread. False when all are taken.
  bool take(int64_t& task) {
    if (at_ == end_) {
      at_ = next_.fetch_add(step_, std::memory_order_relaxed);
      end_ = std::max(at_, std::min(at_ + step_, count_));
    }
    task = at_;
    at_ += at_ < end_;
    return task < end_;
  }

 private:
  std::atomic<int64_t>& next_;
  const int64_t count_, step_;
  int64_t at_ = 0, end_ = 0;
};

// worker(tasks) on each thread: `for (int64_t n; tasks.take(n);)`. A thread that wakes late or meets
// harder tasks leaves the rest to the others. Each task must not depend on who does it.
template <class Worker>
void share_tasks(int64_t count, int64_t grain, const Worker& worker) {
  std::atomic<int64_t> next{0};
  const int64_t workers = std::min(thread_count(), (count + grain - 1) / grain);
  parallel_for(0, workers, 1, [&](int64_t, int64_t) { worker(Tasks(next, count, grain)); });
}

#if WS_DEVICE_CODE
using DeviceGuard = torch::stable::accelerator::DeviceGuard;

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// The CUDA runtime may be linked statically: torch clears the last error of its own copy only, and
// one left in ours would be reported by the next launch.
inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  STD_CUDA_CHECK(error);
}

inline void check_launch() { STD_CUDA_KERNEL_LAUNCH_CHECK(); }

// The elements of a contiguous tensor on the host. Waits for its stream.
template <class T>
std::vector<T> to_host(const Tensor& tensor) {
  std::vector<T> values(static_cast<size_t>(tensor.numel()));
  const cudaStream_t stream = current_stream(tensor);
  check_cuda(cudaMemcpyAsync(values.data(), tensor.data_ptr(), values.size() * sizeof(T),
                             cudaMemcpyDeviceToHost, stream));
  check_cuda(cudaStreamSynchronize(stream));
  return values;
}
#endif

}  // namespace wsfast
