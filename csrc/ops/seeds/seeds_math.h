// Random numbers of the seeds room, the orders in which pixels are chosen, and what becomes of a
// chosen pixel. For host and device; wsfast/ops/seeds/reference.py has the same formulas.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../core/device.h"
#include "../boxes/boxes_math.h"

namespace wsfast::seeds {

using boxes::kLevels;

inline constexpr uint32_t kOne = 0x3f800000;  // the bits of 1.0f, the largest cleaned value
inline constexpr uint64_t kExcluded = ~uint64_t{0};

// ---- random numbers -----------------------------------------------------------------------------

// Each purpose has a stream of random numbers of its own.
enum class Purpose : uint64_t {
  draw_foreground = 1,
  draw_background = 2,
  ties_foreground = 3,
  ties_background = 4
};

// SplitMix64's output function (Steele et al. 2014).
WS_HD inline uint64_t mix64(uint64_t word) {
  word = (word ^ word >> 30) * 0xbf58476d1ce4e5b9u;
  word = (word ^ word >> 27) * 0x94d049bb133111ebu;
  return word ^ word >> 31;
}

// What all random numbers of an image are hashes of.
WS_HD inline uint64_t image_key(uint64_t seed, uint64_t image, uint64_t epoch) {
  constexpr uint64_t golden = 0x9e3779b97f4a7c15u;  // a seed of 0 is no fixed point
  return mix64(mix64(mix64(seed + golden) + image) + epoch);
}

// MurmurHash3's finaliser, a bijection.
WS_HD inline uint32_t mix32(uint32_t word) {
  word = (word ^ word >> 16) * 0x85ebca6bu;
  word = (word ^ word >> 13) * 0xc2b2ae35u;
  return word ^ word >> 16;
}

// The random words of an image's pixels, no two alike.
class Stream {
 public:
  WS_HD Stream(uint64_t image_key, Purpose purpose)
      : Stream(mix64(image_key + static_cast<uint64_t>(purpose))) {}
  WS_HD explicit Stream(uint64_t word) : word_(word) {}

  WS_HD uint64_t word() const { return word_; }

  WS_HD uint32_t operator()(uint32_t pixel) const {
    return mix32(mix32(pixel ^ static_cast<uint32_t>(word_)) ^ static_cast<uint32_t>(word_ >> 32));
  }

 private:
  uint64_t word_;
};

// -ln(1 - (hash + 1/2) / 2^32), ascending in hash: -ln m = 2 atanh(s) with s = (1 - m) / (1 + m) by
// a continued fraction. No sum has a product in it, so no compiler fuses or reorders anything and
// every backend gives the same bits.
WS_HD inline double exponential(uint32_t hash) {
  constexpr uint64_t half = uint64_t{1022} << 52, mantissa_bits = (uint64_t{1} << 52) - 1;
  const uint64_t rest = (uint64_t{1} << 33) - 1 - 2 * uint64_t{hash};
  const double whole = static_cast<double>(static_cast<int64_t>(rest));
  uint64_t bits;
  memcpy(&bits, &whole, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 52) - 1022;
  bits = (bits & mantissa_bits) | half;
  double mantissa;  // 1/2 <= mantissa < 1, whole = mantissa 2^exponent
  memcpy(&mantissa, &bits, sizeof(bits));
  const double s = (1 - mantissa) / (1 + mantissa);
  const double q = s * s;
  double fraction = 7 - 16 * q / 9.0;
  fraction = 5 - 9 * q / fraction;
  fraction = 3 - 4 * q / fraction;
  fraction = 1 - q / fraction;
  return (33 - exponent) / 1.4426950408889634 + 2 * s / fraction;
}

// ---- values and orders --------------------------------------------------------------------------

// A map's value clamped to 0..1 (NaN: 0) as bits, which have the order of the values.
WS_HD inline uint32_t clean_bits(float value) {
  const float positive = value > 0.0f ? value : 0.0f;
  return float_bits(positive < 1.0f ? positive : 1.0f);
}

WS_HD inline int level_of_bits(uint32_t bits) { return boxes::level_of(bits_float(bits)); }

// Orders in which the first n pixels are taken: all different within an image.
WS_HD inline uint64_t order_of(uint32_t first, uint32_t second) {
  return static_cast<uint64_t>(first) << 32 | second;
}

// When the pixel's exponential clock rings (Efraimidis and Spirakis 2006); bits > 0.
WS_HD inline float clock_of(uint32_t hash, uint32_t bits) {
  return static_cast<float>(exponential(hash) / static_cast<double>(bits_float(bits)));
}

WS_HD inline int64_t share_of(int64_t pixels, double share) {
  return static_cast<int64_t>(static_cast<double>(pixels) * share);
}

// Otsu's level as the seeds use it: never everything, never nothing.
WS_HD inline int region_level(int otsu_level) {
  return otsu_level < 1 ? 1 : otsu_level > 254 ? 254 : otsu_level;
}

// ---- seeds --------------------------------------------------------------------------------------

inline constexpr int kForegroundClaim = 1, kBackgroundClaim = 2;

// The seed of a pixel with these claims: 1 foreground, 0 background, -255 for none or both.
WS_HD inline int64_t seed_of(int claims) {
  return claims == kForegroundClaim ? 1 : claims == kBackgroundClaim ? 0 : -255;
}

// How to sample; see wsfast.sample_seeds.
struct Options {
  int64_t foreground, background;
  bool top;
  double foreground_share, background_share;
  bool weighted, outside_roi;
  int erode_radius, dilate_radius;
};

}  // namespace wsfast::seeds
