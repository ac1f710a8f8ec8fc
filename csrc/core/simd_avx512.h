// Sixteen floats in one AVX-512 register. Included by simd.h under the AVX-512 target.
#pragma once

namespace wsfast::simd::avx512 {

struct Vec {
  static constexpr int lanes = 16;
  using Mask = __mmask16;
  __m512 v;

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load(const half_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec load(const bfloat16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
  }
  static Vec gather(const float* p, const int32_t* lane) {
    return {_mm512_i32gather_ps(_mm512_loadu_si512(lane), p, 4)};
  }
  // table[lane[i] - base]; all of these lie inside the table
  static Vec pick(const Vec& table, const int32_t* lane, int32_t base) {
    const __m512i at = _mm512_sub_epi32(_mm512_loadu_si512(lane), _mm512_set1_epi32(base));
    return {_mm512_permutexvar_ps(at, table.v)};
  }
  static Vec set1(float x) { return {_mm512_set1_ps(x)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store(half_t* p) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(p)); }
  void store(bfloat16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrowed(p));
  }
  // Lanes in 0..255, truncated.
  void store_bytes(uint8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvttps_epi32(v)));
  }
  // p aligned to the vector: past the caches, for outputs nobody reads soon.
  void stream(float* p) const { _mm512_stream_ps(p, v); }
  template <class T>
  void stream(T* p) const {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), narrowed(p));
  }

  Vec operator+(const Vec& b) const { return {_mm512_add_ps(v, b.v)}; }
  Vec operator-(const Vec& b) const { return {_mm512_sub_ps(v, b.v)}; }
  Vec operator*(const Vec& b) const { return {_mm512_mul_ps(v, b.v)}; }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return {_mm512_fmadd_ps(a.v, b.v, c.v)};
  }
  static Vec min(const Vec& a, const Vec& b) { return {_mm512_min_ps(a.v, b.v)}; }
  static Vec max(const Vec& a, const Vec& b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Mask greater(const Vec& a, const Vec& b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ);
  }
  static Mask at_least(const Vec& a, const Vec& b) {
    return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
  }
  static Mask both(Mask a, Mask b) { return static_cast<Mask>(a & b); }
  static int count(Mask m) { return __builtin_popcount(m); }
  static unsigned bits(Mask m) { return m; }
  // Counts masked lanes; at most 2^31 adds.
  struct Counter {
    __m512i n;
    Counter() : n(_mm512_setzero_si512()) {}
    void add(Mask m) { n = _mm512_mask_add_epi32(n, m, n, _mm512_set1_epi32(1)); }
    int64_t total() const { return _mm512_reduce_add_epi32(n); }
  };
  static Vec keep(Mask m, const Vec& a) { return {_mm512_maskz_mov_ps(m, a.v)}; }
  static int compress(float* p, Mask m, const Vec& a) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(m, a.v));
    return __builtin_popcount(m);
  }
  static float sum(const Vec& a) { return _mm512_reduce_add_ps(a.v); }
  static float lowest(const Vec& a) { return _mm512_reduce_min_ps(a.v); }
  static float highest(const Vec& a) { return _mm512_reduce_max_ps(a.v); }

 private:
  // The lanes as halves of the pointer's type: to nearest even, NaN stays NaN.
  __m256i narrowed(const half_t*) const {
    return _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  __m256i narrowed(const bfloat16_t*) const {
    const __m512i bits = _mm512_castps_si512(v), high = _mm512_srli_epi32(bits, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
    const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
    const __m512i quiet = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
    const Mask is_nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, is_nan, quiet));
  }
};

inline void stream_fence() { _mm_sfence(); }

inline uint64_t nonzero_bytes(const uint8_t* p) {
  const __m512i bytes = _mm512_loadu_si512(p);
  return _mm512_test_epi8_mask(bytes, bytes);
}

inline void store_where(uint64_t bits, int32_t value, int32_t* p) {
  const __m512i values = _mm512_set1_epi32(value);
  for (; bits != 0; bits >>= 16, p += 16) {
    _mm512_mask_storeu_epi32(p, static_cast<__mmask16>(bits), values);
  }
}

}  // namespace wsfast::simd::avx512
