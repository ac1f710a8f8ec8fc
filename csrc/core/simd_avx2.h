// Eight floats in one AVX2 register. Included by simd.h under the AVX2 target, which GCC applies to
// members but not to friends defined in the class.
#pragma once

namespace wsfast::simd::avx2 {

// Row m: the lane numbers of the set bits of m, in order (for compress).
struct CompressTable {
  alignas(32) int lane[256][8];
  constexpr CompressTable() : lane() {
    for (int m = 0; m < 256; ++m) {
      int n = 0;
      for (int i = 0; i < 8; ++i) {
        if (m >> i & 1) lane[m][n++] = i;
      }
    }
  }
};
inline constexpr CompressTable kCompress{};

struct Vec {
  static constexpr int lanes = 8;
  using Mask = __m256;
  __m256 v;

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load(const half_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec load(const bfloat16_t* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
  }
  static Vec gather(const float* p, const int32_t* lane) {
    return {_mm256_i32gather_ps(p, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane)), 4)};
  }
  // table[lane[i] - base]; all of these lie inside the table
  static Vec pick(const Vec& table, const int32_t* lane, int32_t base) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lane));
    return {_mm256_permutevar8x32_ps(table.v, _mm256_sub_epi32(at, _mm256_set1_epi32(base)))};
  }
  static Vec set1(float x) { return {_mm256_set1_ps(x)}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store(half_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(p)); }
  void store(bfloat16_t* p) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrowed(p)); }
  // Lanes in 0..255, truncated.
  void store_bytes(uint8_t* p) const {
    const __m256i whole = _mm256_cvttps_epi32(v);
    const __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
  }
  // p aligned to the vector: past the caches, for outputs nobody reads soon.
  void stream(float* p) const { _mm256_stream_ps(p, v); }
  template <class T>
  void stream(T* p) const {
    _mm_stream_si128(reinterpret_cast<__m128i*>(p), narrowed(p));
  }

  Vec operator+(const Vec& b) const { return {_mm256_add_ps(v, b.v)}; }
  Vec operator-(const Vec& b) const { return {_mm256_sub_ps(v, b.v)}; }
  Vec operator*(const Vec& b) const { return {_mm256_mul_ps(v, b.v)}; }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return {_mm256_fmadd_ps(a.v, b.v, c.v)};
  }
  static Vec min(const Vec& a, const Vec& b) { return {_mm256_min_ps(a.v, b.v)}; }
  static Vec max(const Vec& a, const Vec& b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Mask greater(const Vec& a, const Vec& b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GT_OQ); }
  static Mask at_least(const Vec& a, const Vec& b) { return _mm256_cmp_ps(a.v, b.v, _CMP_GE_OQ); }
  static Mask both(Mask a, Mask b) { return _mm256_and_ps(a, b); }
  static unsigned bits(Mask m) { return static_cast<unsigned>(_mm256_movemask_ps(m)); }
  static int count(Mask m) { return __builtin_popcount(bits(m)); }
  // Counts masked lanes; at most 2^31 adds.
  struct Counter {
    __m256i n;
    Counter() : n(_mm256_setzero_si256()) {}
    void add(Mask m) { n = _mm256_sub_epi32(n, _mm256_castps_si256(m)); }
    int64_t total() const {
      alignas(32) int32_t lane[lanes];
      _mm256_store_si256(reinterpret_cast<__m256i*>(lane), n);
      int64_t sum = 0;
      for (const int32_t count : lane) sum += count;
      return sum;
    }
  };
  static Vec keep(Mask m, const Vec& a) { return {_mm256_and_ps(m, a.v)}; }
  static int compress(float* p, Mask m, const Vec& a) {
    const int bits = _mm256_movemask_ps(m);
    const __m256i order =
        _mm256_load_si256(reinterpret_cast<const __m256i*>(kCompress.lane[bits]));
    _mm256_storeu_ps(p, _mm256_permutevar8x32_ps(a.v, order));
    return __builtin_popcount(static_cast<unsigned>(bits));
  }
  static float sum(const Vec& a) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static float lowest(const Vec& a) {
    __m128 s = _mm_min_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_min_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_min_ss(s, _mm_shuffle_ps(s, s, 1)));
  }
  static float highest(const Vec& a) {
    __m128 s = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
    s = _mm_max_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_max_ss(s, _mm_shuffle_ps(s, s, 1)));
  }

 private:
  // The lanes as halves of the pointer's type: to nearest even, NaN stays NaN.
  __m128i narrowed(const half_t*) const {
    return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  __m128i narrowed(const bfloat16_t*) const {
    const __m256i bits = _mm256_castps_si256(v), high = _mm256_srli_epi32(bits, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i half = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
    const __m256i quiet = _mm256_or_si256(high, _mm256_set1_epi32(0x40));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i words = _mm256_blendv_epi8(rounded, quiet, is_nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  }
};

inline void stream_fence() { _mm_sfence(); }

inline uint64_t nonzero_bytes(const uint8_t* p) {
  const auto zeros = [p](int at) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + at));
    return static_cast<uint32_t>(
        _mm256_movemask_epi8(_mm256_cmpeq_epi8(bytes, _mm256_setzero_si256())));
  };
  return ~(uint64_t{zeros(32)} << 32 | zeros(0));
}

inline void store_where(uint64_t bits, int32_t value, int32_t* p) {
  const __m256i values = _mm256_set1_epi32(value);
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  for (; bits != 0; bits >>= 8, p += 8) {
    const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits & 255)), lane);
    _mm256_maskstore_epi32(p, _mm256_cmpeq_epi32(set, lane), values);
  }
}

}  // namespace wsfast::simd::avx2
