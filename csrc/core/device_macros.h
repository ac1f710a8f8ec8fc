// The function and pointer qualifiers of CUDA, for three readers of the same source: nvcc, the
// CPU emulator of the tests (WSFAST_EMULATOR) and a plain host compiler.
#pragma once

#ifdef WSFAST_EMULATOR
#include "cuda_emulator.h"
#endif

#if defined(__CUDACC__) || defined(WSFAST_EMULATOR)
#define WS_DEVICE_CODE 1
#define WS_HD __host__ __device__
#define WS_DEVICE __device__
#define WS_GLOBAL __global__
#else
#define WS_DEVICE_CODE 0
#define WS_HD
#define WS_DEVICE
#define WS_GLOBAL
#endif

#define WS_RESTRICT __restrict__
