// Bugs planted for compute-sanitizer: if a tool with our kernel filter does not find its bug here,
// its silence about wsfast's kernels means nothing. Not part of the library.
#include <cstdio>
#include <cstring>

namespace wsfast::planted {

__global__ void memcheck_bug(int* values, int count) { values[count + threadIdx.x] = 1; }

__global__ void racecheck_bug(int* out) {
  __shared__ int shared[64];
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  out[threadIdx.x] = shared[63 - threadIdx.x];  // no barrier in between
}

__global__ void initcheck_bug(const int* values, int* out) { out[threadIdx.x] = values[threadIdx.x]; }

__global__ void synccheck_bug(int* out) {
  if (threadIdx.x < 40) __syncthreads();  // part of a warp
  out[threadIdx.x] = 1;
}

}  // namespace wsfast::planted

int main(int count, char** arguments) {
  using namespace wsfast::planted;
  const char* const tool = count > 1 ? arguments[1] : "";
  int *first = nullptr, *second = nullptr;
  cudaMalloc(&first, 64 * sizeof(int));
  cudaMalloc(&second, 64 * sizeof(int));
  if (std::strcmp(tool, "memcheck") == 0) memcheck_bug<<<1, 64>>>(first, 64);
  if (std::strcmp(tool, "racecheck") == 0) racecheck_bug<<<1, 64>>>(first);
  if (std::strcmp(tool, "initcheck") == 0) initcheck_bug<<<1, 64>>>(first, second);
  if (std::strcmp(tool, "synccheck") == 0) synccheck_bug<<<1, 64>>>(first);
  std::printf("%s: %s\n", tool, cudaGetErrorString(cudaDeviceSynchronize()));
  cudaFree(first);
  cudaFree(second);
  return 0;
}
