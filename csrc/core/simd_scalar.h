// The portable vector type: four floats the compiler may keep in one SSE2 or NEON register.
#pragma once

#include "device.h"

namespace wsfast::simd::scalar {

struct Vec {
  static constexpr int lanes = 4;
  using Mask = unsigned;  // one bit per lane
  float v[lanes];

  template <class T>
  static Vec load(const T* p) {
    Vec r;
    for (int i = 0; i < lanes; ++i) r.v[i] = to_acc(p[i]);
    return r;
  }
  static Vec gather(const float* p, const int32_t* lane) {
    return {{p[lane[0]], p[lane[1]], p[lane[2]], p[lane[3]]}};
  }
  // table[lane[i] - base]; all of these lie inside the table
  static Vec pick(const Vec& table, const int32_t* lane, int32_t base) {
    const float* t = table.v;
    return {{t[lane[0] - base], t[lane[1] - base], t[lane[2] - base], t[lane[3] - base]}};
  }
  static Vec set1(float x) { return {{x, x, x, x}}; }
  template <class T>
  void store(T* p) const {
    for (int i = 0; i < lanes; ++i) p[i] = from_acc<T>(v[i]);
  }
  // Lanes in 0..255, truncated.
  void store_bytes(uint8_t* p) const {
    for (int i = 0; i < lanes; ++i) p[i] = static_cast<uint8_t>(v[i]);
  }
  template <class T>
  void stream(T* p) const { store(p); }

  friend Vec operator+(Vec a, const Vec& b) {
    for (int i = 0; i < lanes; ++i) a.v[i] += b.v[i];
    return a;
  }
  friend Vec operator-(Vec a, const Vec& b) {
    for (int i = 0; i < lanes; ++i) a.v[i] -= b.v[i];
    return a;
  }
  friend Vec operator*(Vec a, const Vec& b) {
    for (int i = 0; i < lanes; ++i) a.v[i] *= b.v[i];
    return a;
  }
  [[gnu::always_inline]] static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return a * b + c;
  }
  static Vec min(Vec a, const Vec& b) {
    for (int i = 0; i < lanes; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static Vec max(Vec a, const Vec& b) {
    for (int i = 0; i < lanes; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
    return a;
  }
  static Mask greater(const Vec& a, const Vec& b) {
    Mask m = 0;
    for (int i = 0; i < lanes; ++i) m |= unsigned(a.v[i] > b.v[i]) << i;
    return m;
  }
  static Mask at_least(const Vec& a, const Vec& b) {
    Mask m = 0;
    for (int i = 0; i < lanes; ++i) m |= unsigned(a.v[i] >= b.v[i]) << i;
    return m;
  }
  static Mask both(Mask a, Mask b) { return a & b; }
  static int count(Mask m) { return __builtin_popcount(m); }
  static unsigned bits(Mask m) { return m; }
  // Counts masked lanes.
  struct Counter {
    int64_t n = 0;
    void add(Mask m) { n += __builtin_popcount(m); }
    int64_t total() const { return n; }
  };
  static Vec keep(Mask m, Vec a) {
    for (int i = 0; i < lanes; ++i) a.v[i] = (m >> i & 1u) ? a.v[i] : 0.0f;
    return a;
  }
  // Writes the masked lanes to p in order, and may write `lanes` values in all.
  static int compress(float* p, Mask m, const Vec& a) {
    int n = 0;
    for (int i = 0; i < lanes; ++i) {
      p[n] = a.v[i];
      n += m >> i & 1u;
    }
    return n;
  }
  static float sum(const Vec& a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
  static float lowest(const Vec& a) {
    float r = a.v[0];
    for (int i = 1; i < lanes; ++i) r = a.v[i] < r ? a.v[i] : r;
    return r;
  }
  static float highest(const Vec& a) {
    float r = a.v[0];
    for (int i = 1; i < lanes; ++i) r = a.v[i] > r ? a.v[i] : r;
    return r;
  }
};

inline void stream_fence() {}

// Bit i says p[i] != 0; reads 64 bytes.
inline uint64_t nonzero_bytes(const uint8_t* p) {
  constexpr uint64_t low = 0x7f7f7f7f7f7f7f7f;
  uint64_t word = 0;
  for (int i = 0; i < 64; i += 8) {
    uint64_t eight = 0;
    for (int b = 0; b < 8; ++b) eight |= uint64_t{p[i + b]} << 8 * b;
    const uint64_t flags = ((((eight & low) + low) | eight) & ~low) >> 7;
    word |= (flags * 0x0102040810204080 >> 56) << i;  // gathers the eight flags
  }
  return word;
}

// p[i] = value where bit i is set; nothing else is touched.
inline void store_where(uint64_t bits, int32_t value, int32_t* p) {
  for (; bits != 0; bits &= bits - 1) p[__builtin_ctzll(bits)] = value;
}

}  // namespace wsfast::simd::scalar
