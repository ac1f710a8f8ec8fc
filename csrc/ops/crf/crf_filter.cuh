// CUDA kernels that apply lattices: splat, blur, slice. Values are added to vertices as integers in
// units of a power of two below the rounding of any sum, so results do not depend on scheduling. No
// torch: the emulator runs this file on the CPU.
#pragma once

#include "crf_kernels.cuh"

namespace wsfast::crf {

inline constexpr int kGroup = 8;  // channels at a time
inline constexpr int kEnergyThreads = 1024;  // one block sums the energy of an image's channel,
inline constexpr int kEnergyLoads = 4;       // with so many vertices of a thread in flight
inline constexpr int kNoExponent = -4000;
inline constexpr int kNotFinite = 1 << 20;

// Finished lattices of a batch.
template <class A>
struct Kept {
  int64_t images, points, total;  // vertices in all
  int corners;
  const int32_t* vertices;    // (images, points, corners)
  const A* weights;           // (images, points, corners)
  const int32_t* neighbours;  // (corners, 2, total)
  const int64_t* offsets;     // (images + 1)

  WS_HD int64_t count(int64_t image) const { return offsets[image + 1] - offsets[image]; }
};

// Channels [first, first + group) of planes (images, channels, points), and their mask.
template <class A>
struct Group {
  int64_t channels, first;
  int size;
  const A* roi;              // (images, points) or null
  const int32_t* exponents;  // (images, channels): every masked value is below 2^exponent in size

  WS_HD int64_t plane(int64_t image, int c) const { return image * channels + first + c; }
  WS_HD A mask(int64_t index) const { return roi == nullptr ? A(1) : roi[index]; }
};

// Units are 2^-shift: no sum of all points reaches 2^62.
WS_HD inline int unit_shift(int exponent, int point_bits) { return 61 - exponent - point_bits; }

WS_GLOBAL void __launch_bounds__(kThreads)
    begin_exponents_kernel(int64_t planes, int32_t* exponents) {
  for (int64_t i = global_thread_id(); i < planes; i += global_thread_count()) {
    exponents[i] = kNoExponent;
  }
}

// Blocks share a plane in `parts`.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    exponent_kernel(const T* values, const acc_t<T>* roi, int64_t channels, int64_t points,
                    int parts, int32_t* exponents) {
  __shared__ int scratch[kThreads / kWarpSize];
  const int64_t plane = blockIdx.x / parts, part = blockIdx.x % parts;
  const int64_t mask = plane / channels * points;
  const int64_t begin = points * part / parts, end = points * (part + 1) / parts;
  int largest = kNoExponent;
  for (int64_t i = begin + block_thread(); i < end; i += kThreads) {
    acc_t<T> value = to_acc(values[plane * points + i]);
    if (roi != nullptr) value *= roi[mask + i];
    const bool finite = is_finite(value);
    const int exponent = !finite ? kNotFinite : value == acc_t<T>(0) ? kNoExponent : ilogb(value) + 1;
    largest = exponent > largest ? exponent : largest;
  }
  largest = block_max(largest, scratch);
  if (block_thread() == 0 && largest > kNoExponent) atomic_max(exponents + plane, largest);
}

WS_GLOBAL void __launch_bounds__(kThreads) clear_kernel(int64_t count, int64_t* sums) {
  for (int64_t i = global_thread_id(); i < count; i += global_thread_count()) sums[i] = 0;
}

// The first lane of a run gets the sum of the run's shares. Bit i of `follows`: lane i belongs to the
// run of lane i - 1.
WS_DEVICE inline int64_t run_sum(int64_t share, unsigned follows) {
  for (int step = 1; follows != 0; step *= 2) {  // bit i by now: lane i to the run of lane i - step
    const int64_t other = warp_shfl_down(share, static_cast<unsigned>(step));
    if ((static_cast<uint64_t>(follows) >> (warp_lane() + step) & 1) != 0) share += other;
    follows &= follows << step;
  }
  return share;
}

// Adds every point's values to its vertices; sums are (total, group). Neighbouring points often
// share a vertex: a warp adds those up first. All of its lanes go on together.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    splat_kernel(const Kept<acc_t<T>> lattice, const Group<acc_t<T>> in, const T* values,
                 int point_bits, int64_t* sums) {
  const int lane = warp_lane();
  const int64_t points = lattice.images * lattice.points;
  for (int64_t begin = global_thread_id() - lane; begin < points; begin += global_thread_count()) {
    const bool inside = begin + lane < points;
    const int64_t i = inside ? begin + lane : points - 1;
    const int64_t image = i / lattice.points, point = i % lattice.points;
    const int32_t* const vertices = lattice.vertices + i * lattice.corners;
    const acc_t<T>* const weights = lattice.weights + i * lattice.corners;
    const bool known = inside && lattice.count(image) > 0;
    double units[kGroup] = {};
    for (int c = 0; c < kGroup; ++c) {
      if (c >= in.size) break;
      const int64_t plane = in.plane(image, c);
      const int exponent = in.exponents[plane];
      if (!known || exponent == kNotFinite || exponent == kNoExponent) continue;
      const acc_t<T> value = to_acc(values[plane * lattice.points + point]) * in.mask(i);
      units[c] = ldexp(static_cast<double>(value), unit_shift(exponent, point_bits));
    }
    for (int k = 0; k < lattice.corners; ++k) {
      const int64_t row = known ? lattice.offsets[image] + vertices[k] : -1;
      const double weight = known ? static_cast<double>(weights[k]) : 0.0;
      const int64_t before = warp_shfl_up(row, 1u);
      const unsigned follows = warp_ballot(lane > 0 && before == row);
      const bool leads = row >= 0 && (follows >> lane & 1) == 0;
      for (int c = 0; c < kGroup; ++c) {
        if (c >= in.size) break;
        const int64_t sum = run_sum(static_cast<int64_t>(rint(units[c] * weight)), follows);
        if (leads && sum != 0) atomic_add(sums + row * in.size + c, sum);
      }
    }
  }
}

// Blocks of row y work on image y and those that follow by the grid's height.
template <class A, class Visit>
WS_DEVICE void for_vertices(const Kept<A>& lattice, int group, const Visit& visit) {
  for (int64_t image = blockIdx.y; image < lattice.images; image += gridDim.y) {
    const int64_t entries = lattice.count(image) * group, first = lattice.offsets[image];
    for (int64_t i = global_thread_id(); i < entries; i += global_thread_count()) {
      visit(image, first, i / group, static_cast<int>(i % group));
    }
  }
}

template <class A>
WS_GLOBAL void __launch_bounds__(kThreads)
    settle_sums_kernel(const Kept<A> lattice, const Group<A> in, int point_bits,
                       const int64_t* sums, A* rows) {
  for_vertices(lattice, in.size, [&](int64_t image, int64_t first, int64_t vertex, int c) {
    const int exponent = in.exponents[in.plane(image, c)];
    const int64_t at = (first + vertex) * in.size + c;
    const bool finite = exponent != kNotFinite;
    rows[at] = finite ? static_cast<A>(ldexp(static_cast<double>(sums[at]),
                                             -unit_shift(exponent, point_bits)))
                      : A(NAN);
  });
}

// out = in + half of both neighbours along one axis; added to `more` where that is not null.
template <class A>
WS_GLOBAL void __launch_bounds__(kThreads)
    blur_kernel(const Kept<A> lattice, int axis, int group, const A* in, A* out, const A* more) {
  const int32_t* const one = lattice.neighbours + 2 * axis * lattice.total;
  const int32_t* const other = one + lattice.total;
  for_vertices(lattice, group, [&](int64_t, int64_t first, int64_t vertex, int c) {
    const auto at = [&](int32_t neighbour) {
      return neighbour < 0 ? A(0) : in[(first + neighbour) * group + c];
    };
    const int64_t row = first + vertex, entry = row * group + c;
    const A sum = in[entry] + A(0.5) * (at(one[row]) + at(other[row]));
    out[entry] = more == nullptr ? sum : more[entry] + sum;
  });
}

// A sum in fixed point: units of 2^-shift, and what their rounding leaves in finer ones, so that the
// order of the terms, which is that of the vertices' numbers, does not matter. Terms that are not
// finite are summed apart.
struct OrderlessSum {
  static constexpr int kFinerBits = 30;
  int64_t units = 0, finer = 0;
  double broken = 0.0;

  WS_DEVICE void add(double term, int shift) {
    if (!is_finite(term)) {
      broken += term;
      return;
    }
    const double scaled = ldexp(term, shift), whole = rint(scaled);
    units += static_cast<int64_t>(whole);
    finer += static_cast<int64_t>(rint(ldexp(scaled - whole, kFinerBits)));
  }

  // By all threads of a block; `scratch` holds one value per warp.
  WS_DEVICE double block_total(int shift, int64_t* scratch, double* broken_scratch) const {
    const double others = block_sum(broken, broken_scratch);
    const auto sum = static_cast<double>(block_sum(units, scratch));
    const auto rest = static_cast<double>(block_sum(finer, scratch));
    return ldexp(sum + ldexp(rest, -kFinerBits), -shift) + others;
  }
};

// Units for the products of an image's splatted and blurred values. The splatted ones' sizes sum to
// less than 2^bits, and each of the blurs at most doubles the largest.
WS_HD inline int product_shift(int exponent, int point_bits, int blurs) {
  const int bits = exponent + point_bits + 1;
  return 61 - 2 * bits - blurs;
}

// energy = scale * sum of a * b over an image's vertices. One block per channel and image.
template <class A>
WS_GLOBAL void __launch_bounds__(kEnergyThreads)
    energy_kernel(const Kept<A> lattice, const Group<A> group, int point_bits, double scale,
                  const A* a, const A* b, A* energy) {
  __shared__ int64_t scratch[kEnergyThreads / kWarpSize];
  __shared__ double broken_scratch[kEnergyThreads / kWarpSize];
  const int c = static_cast<int>(blockIdx.x);
  for (int64_t image = blockIdx.y; image < lattice.images; image += gridDim.y) {
    const int64_t plane = group.plane(image, c);
    const int shift = product_shift(group.exponents[plane], point_bits, lattice.corners);
    OrderlessSum sum;
    const int64_t end = lattice.offsets[image + 1];
    for (int64_t first = lattice.offsets[image] + block_thread(); first < end;
         first += kEnergyLoads * kEnergyThreads) {
      A left[kEnergyLoads], right[kEnergyLoads];  // 0 beyond the end, which adds nothing
      for (int k = 0; k < kEnergyLoads; ++k) {
        const int64_t v = first + k * kEnergyThreads, at = v * group.size + c;
        left[k] = v < end ? a[at] : A(0);
        right[k] = v < end ? b[at] : A(0);
      }
      for (int k = 0; k < kEnergyLoads; ++k) {
        sum.add(static_cast<double>(left[k]) * static_cast<double>(right[k]), shift);
      }
    }
    const double total = sum.block_total(shift, scratch, broken_scratch);
    if (block_thread() != 0) continue;
    const bool known = lattice.count(image) > 0;
    energy[plane] = known ? static_cast<A>(scale * total) : A(NAN);
  }
}

// Every point's share of its vertices' rows.
template <class T>
WS_GLOBAL void __launch_bounds__(kThreads)
    slice_kernel(const Kept<acc_t<T>> lattice, const Group<acc_t<T>> group, acc_t<T> scale,
                 const acc_t<T>* rows, T* out) {
  using A = acc_t<T>;
  const int64_t points = lattice.images * lattice.points;
  for (int64_t i = global_thread_id(); i < points; i += global_thread_count()) {
    const int64_t image = i / lattice.points, point = i % lattice.points;
    const int32_t* const vertices = lattice.vertices + i * lattice.corners;
    const A* const weights = lattice.weights + i * lattice.corners;
    const A* const own = rows + lattice.offsets[image] * group.size;
    const bool known = lattice.count(image) > 0;
    const A mask = group.mask(i) * scale;
    A sums[kGroup] = {};
    for (int k = 0; known && k < lattice.corners; ++k) {
      const A* const row = own + static_cast<int64_t>(vertices[k]) * group.size;
      for (int c = 0; c < kGroup; ++c) {
        if (c >= group.size) break;
        sums[c] += weights[k] * row[c];
      }
    }
    for (int c = 0; c < kGroup; ++c) {
      if (c >= group.size) break;
      out[group.plane(image, c) * lattice.points + point] =
          from_acc<T>(known ? sums[c] * mask : A(NAN));
    }
  }
}

}  // namespace wsfast::crf
