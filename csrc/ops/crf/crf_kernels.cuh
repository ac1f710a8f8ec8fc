// CUDA kernels that build the lattices of a batch: bounds of the features, the simplex of every
// point, its vertices in one hash table per image, numbers and neighbours. A vertex enters a table
// by one compare-and-swap of its whole key: no locks, no clean-up. Only the numbering of vertices
// depends on scheduling, nothing that is computed on them does. No torch: the emulator runs this
// file on the CPU. What happens on the vertices is in crf_filter.cuh.
#pragma once

#include "crf_math.h"

namespace wsfast::crf {

inline constexpr int kThreads = 256;
inline constexpr int64_t kNoKey = -1;
inline constexpr int kNumberSlots = 16;    // that a lane of number_kernel reads at a time
inline constexpr int kNeighbourSlots = 2;  // and one of neighbour_kernel

// Points of a batch: feature planes, or images whose first two features are column and row.
struct Points {
  int64_t images, points, width;  // width 0: no coordinates
  int d, planes;
  double coefficient[kLargestDimension];  // 1 / sigma times elevation_scale

  WS_HD int first_plane() const { return d - planes; }
  WS_HD int corners() const { return d + 1; }
};

// The lattices of a batch while they are built.
template <class A>
struct Build {
  int64_t slots;      // of one image's table, a multiple of kWarpSize
  A* features;        // (images, planes, points)
  int64_t* bounds;    // (images, planes, 2): lowest and highest as ordered integers
  KeySpace* spaces;   // (images): bits are 0 where the keys do not fit or a feature is not finite
  int64_t* keys;      // (images, slots)
  int32_t* numbers;   // (images, slots)
  int32_t* vertices;  // (images, points, corners): slots, numbers in the end
  A* weights;         // (images, points, corners)
  int64_t* offsets;   // (images + 1): where an image's vertices begin
};

// ---- bounds of the features ---------------------------------------------------------------------

// Integers in the order of the numbers; NaN lies beyond the infinities. Its own inverse.
WS_HD inline int64_t ordered_bits(int64_t bits) {
  return bits < 0 ? bits ^ INT64_MAX : bits;
}
WS_HD inline int64_t to_ordered(double value) {
  int64_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return ordered_bits(bits);
}
WS_HD inline double from_ordered(int64_t ordered) {
  const int64_t bits = ordered_bits(ordered);
  double value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

template <class A>
WS_GLOBAL void __launch_bounds__(kThreads) begin_kernel(const Points points, const Build<A> build) {
  const int64_t threads = global_thread_count(), first = global_thread_id();
  for (int64_t i = first; i < points.images * build.slots; i += threads) build.keys[i] = kNoKey;
  for (int64_t i = first; i < points.images * points.planes; i += threads) {
    build.bounds[2 * i] = INT64_MAX;
    build.bounds[2 * i + 1] = INT64_MIN;
  }
  for (int64_t i = first; i <= points.images; i += threads) build.offsets[i] = 0;
}

template <class T>
WS_DEVICE double feature_of(T value) {
  return static_cast<double>(to_acc(value));
}
WS_DEVICE inline double feature_of(uint8_t value) { return static_cast<double>(value); }

// Features in the type they are computed in, and their bounds; blocks share a plane in `parts`.
template <class T, class A>
WS_GLOBAL void __launch_bounds__(kThreads)
    widen_kernel(const Points points, const T* planes, int parts, const Build<A> build) {
  __shared__ int64_t scratch[kThreads / kWarpSize];
  const int64_t plane = blockIdx.x / parts, part = blockIdx.x % parts;
  const int64_t begin = points.points * part / parts, end = points.points * (part + 1) / parts;
  int64_t low = INT64_MAX, high = INT64_MIN;
  for (int64_t i = begin + block_thread(); i < end; i += kThreads) {
    const double value = feature_of(planes[plane * points.points + i]);
    build.features[plane * points.points + i] = static_cast<A>(value);
    const int64_t ordered = to_ordered(value);
    low = ordered < low ? ordered : low;
    high = ordered > high ? ordered : high;
  }
  low = block_min(low, scratch);
  high = block_max(high, scratch);
  if (block_thread() != 0) return;
  atomic_min(build.bounds + 2 * plane, low);
  atomic_max(build.bounds + 2 * plane + 1, high);
}

// One thread per image.
template <class A>
WS_GLOBAL void __launch_bounds__(kThreads) space_kernel(const Points points, const Build<A> build) {
  for (int64_t n = global_thread_id(); n < points.images; n += global_thread_count()) {
    double low[kLargestDimension] = {}, high[kLargestDimension] = {};
    if (points.width > 0) {
      high[0] = static_cast<double>((points.width < points.points ? points.width : points.points) - 1);
      high[1] = static_cast<double>((points.points - 1) / points.width);
    }
    bool finite = true;
    for (int c = 0; c < points.planes; ++c) {
      const int i = points.first_plane() + c;
      low[i] = from_ordered(build.bounds[2 * (n * points.planes + c)]);
      high[i] = from_ordered(build.bounds[2 * (n * points.planes + c) + 1]);
      finite = finite && low[i] - low[i] == 0.0 && high[i] - high[i] == 0.0;
    }
    for (int i = 0; i < points.d; ++i) {
      low[i] *= points.coefficient[i];
      high[i] *= points.coefficient[i];
    }
    build.spaces[n] = finite ? key_space(points.d, low, high, axis_bits<A>) : KeySpace{points.d, {}, 0, 0, 0};
  }
}

// ---- vertices -----------------------------------------------------------------------------------

WS_DEVICE inline int64_t home_of(int64_t key, int64_t slots) {
  const uint64_t hash = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u >> 32;
  return static_cast<int64_t>(hash * static_cast<uint64_t>(slots) >> 32);
}

// The slot that holds the key from now on. There are more slots than vertices.
WS_DEVICE inline int32_t insert(int64_t* table, int64_t slots, int64_t key) {
  for (int64_t slot = home_of(key, slots);; slot = slot + 1 == slots ? 0 : slot + 1) {
    int64_t held = table[slot];  // reading first spares most of the atomics
    if (held == kNoKey) held = atomic_cas(table + slot, kNoKey, key);
    if (held == kNoKey || held == key) return static_cast<int32_t>(slot);
  }
}

// The slot that holds the key, -1 if none does.
WS_DEVICE inline int32_t look_up(const int64_t* table, int64_t slots, int64_t key) {
  for (int64_t slot = home_of(key, slots);; slot = slot + 1 == slots ? 0 : slot + 1) {
    if (table[slot] == key) return static_cast<int32_t>(slot);
    if (table[slot] == kNoKey) return -1;
  }
}

// The simplex of every point; its vertices enter the table.
template <class A, int D>
WS_GLOBAL void __launch_bounds__(kThreads) embed_kernel(const Points points, const Build<A> build) {
  const int64_t total = points.images * points.points;
  for (int64_t i = global_thread_id(); i < total; i += global_thread_count()) {
    const int64_t image = i / points.points, point = i % points.points;
    int32_t* const vertices = build.vertices + i * (D + 1);
    A* const weights = build.weights + i * (D + 1);
    const KeySpace& space = build.spaces[image];
    if (space.bits == 0) {
      for (int k = 0; k <= D; ++k) {
        vertices[k] = 0;
        weights[k] = A(0);
      }
      continue;
    }
    A scaled[D];
    for (int axis = 0; axis < D; ++axis) {
      const int plane = axis - points.first_plane();
      A value;
      if (plane >= 0) {
        value = build.features[(image * points.planes + plane) * points.points + point];
      } else {
        value = static_cast<A>(axis == 0 ? point % points.width : point / points.width);
      }
      scaled[axis] = value * static_cast<A>(points.coefficient[axis]);
    }
    Simplex<SingleLane<A>, D> simplex;
    find_simplex<SingleLane<A>, D>(scaled, simplex);
    uint64_t key = static_cast<uint64_t>(space.base);  // parts of the sum may leave its range
    for (int axis = 0; axis < D; ++axis) {
      key += static_cast<uint64_t>(space.stride[axis]) *
             static_cast<uint64_t>(static_cast<int64_t>(simplex.quotient[axis]));
    }
    int64_t* const table = build.keys + image * build.slots;
    vertices[0] = insert(table, build.slots, static_cast<int64_t>(key));
    weights[0] = simplex.weight[0];
    for (int k = 1; k <= D; ++k) {
      key += static_cast<uint64_t>(space.colour);
      for (int axis = 0; axis < D; ++axis) {
        if (simplex.rank[axis] == D + 1 - k) key -= static_cast<uint64_t>(space.stride[axis]);
      }
      vertices[k] = insert(table, build.slots, static_cast<int64_t>(key));
      weights[k] = simplex.weight[k];
    }
  }
}

// Numbers the vertices of every image; offsets[n + 1] counts those of image n. All warps of an image
// queue for its count, so that one addition to it serves many slots of a warp. Blocks of row y work
// on image y and those that follow by the grid's height.
template <class A>
WS_GLOBAL void __launch_bounds__(kThreads) number_kernel(const Points points, const Build<A> build) {
  const int lane = warp_lane();
  for (int64_t image = blockIdx.y; image < points.images; image += gridDim.y) {
    const int64_t* const keys = build.keys + image * build.slots;
    int32_t* const numbers = build.numbers + image * build.slots;
    for (int64_t begin = kNumberSlots * (global_thread_id() - lane) + lane;
         begin - lane < build.slots; begin += kNumberSlots * global_thread_count()) {
      int64_t held[kNumberSlots];
      for (int j = 0; j < kNumberSlots; ++j) {
        const int64_t slot = begin + j * kWarpSize;
        held[j] = slot < build.slots ? keys[slot] : kNoKey;
      }
      unsigned used[kNumberSlots];
      int count = 0;
      for (int j = 0; j < kNumberSlots; ++j) {
        used[j] = warp_ballot(held[j] != kNoKey);
        count += __popc(used[j]);
      }
      if (count == 0) continue;
      int64_t before = 0;
      if (lane == 0) before = atomic_add(build.offsets + image + 1, count);
      before = warp_shfl(before, 0);
      for (int j = 0; j < kNumberSlots; ++j) {
        const int rank = __popc(used[j] & ((1u << lane) - 1));
        const bool own = (used[j] >> lane & 1) != 0;
        if (own) numbers[begin + j * kWarpSize] = static_cast<int32_t>(before) + rank;
        before += __popc(used[j]);
      }
    }
  }
}

// Turns counts into offsets. One thread: batches are short.
WS_GLOBAL void offset_kernel(int64_t images, int64_t* offsets) {
  for (int64_t n = 0; n < images; ++n) offsets[n + 1] += offsets[n];
}

// Slots become numbers.
template <class A>
WS_GLOBAL void __launch_bounds__(kThreads) settle_kernel(const Points points, const Build<A> build) {
  const int64_t per_image = points.points * points.corners();
  const int64_t total = points.images * per_image;
  for (int64_t i = global_thread_id(); i < total; i += global_thread_count()) {
    const int64_t image = i / per_image;
    if (build.spaces[image].bits == 0) continue;
    build.vertices[i] = build.numbers[image * build.slots + build.vertices[i]];
  }
}

// Both neighbours of every vertex along every axis, -1 where there is none: (corners, 2, vertices).
// Few slots hold a key, but nearly every block has one: a warp takes its vertices one by one, each
// lane looks up one neighbour. Rows of blocks as above.
template <class A>
WS_GLOBAL void __launch_bounds__(kThreads)
    neighbour_kernel(const Points points, const Build<A> build, int64_t vertices,
                     int32_t* neighbours) {
  static_assert(2 * (kLargestDimension + 1) <= kWarpSize && kNeighbourSlots == 2);
  const int lane = warp_lane();
  const bool looks = lane < 2 * points.corners(), ahead = lane % 2 == 0;
  for (int64_t image = blockIdx.y; image < points.images; image += gridDim.y) {
    const KeySpace& space = build.spaces[image];
    const int64_t stride = looks ? space.stride[lane / 2] : 0;
    const int64_t colour = space.colour, wrapping = space.wrapping_step();
    const int64_t* const table = build.keys + image * build.slots;
    const int32_t* const numbers = build.numbers + image * build.slots;
    const int64_t row = lane * vertices + build.offsets[image];
    for (int64_t begin = kNeighbourSlots * (global_thread_id() - lane); begin < build.slots;
         begin += kNeighbourSlots * global_thread_count()) {
      const int64_t next = begin + kWarpSize;
      const int64_t one = table[begin + lane];
      const int64_t other = next < build.slots ? table[next + lane] : kNoKey;
      uint64_t used = warp_ballot(other != kNoKey);
      used = used << kWarpSize | warp_ballot(one != kNoKey);
      for (; looks && used != 0; used &= used - 1) {
        const int64_t slot = begin + __ffsll(static_cast<long long>(used)) - 1, key = table[slot];
        const bool wraps = ahead ? key < colour : key >= points.d * colour;
        const int64_t step = stride + (wraps ? wrapping : -colour);
        const int32_t found = look_up(table, build.slots, ahead ? key + step : key - step);
        neighbours[row + numbers[slot]] = found < 0 ? -1 : numbers[found];
      }
    }
  }
}

}  // namespace wsfast::crf
