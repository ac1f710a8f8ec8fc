// Includes WS_SIMD_BODY (a quoted path) once per instruction set; see simd.h. No include guard.
#include "simd.h"

#define WS_SIMD scalar
#include WS_SIMD_BODY
#undef WS_SIMD

#if WS_X86_SIMD
WS_BEGIN_AVX2
#define WS_SIMD avx2
#include WS_SIMD_BODY
#undef WS_SIMD
WS_END_TARGET

WS_BEGIN_AVX512
#define WS_SIMD avx512
#include WS_SIMD_BODY
#undef WS_SIMD
WS_END_TARGET
#endif

#undef WS_SIMD_BODY
