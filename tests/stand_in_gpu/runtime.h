// The names of CUDA's runtime, and of torch's wrappers of it, that the code around kernels uses.
#pragma once

#include "cuda_emulator.h"

using cudaError_t = int;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr int cudaMemcpyDeviceToHost = 2, cudaDevAttrMaxSharedMemoryPerBlockOptin = 97;

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int, cudaStream_t) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, int, int) {
  *value = 227 << 10;  // Hopper's
  return cudaSuccess;
}

inline int aoti_torch_get_current_cuda_stream(int, void**) { return 0; }  // the default stream
inline void torch_c10_cuda_check_msg(int, const char*, const char*, unsigned, bool, char**) {}
inline void torch_c10_cuda_free_error_msg(char*) {}
