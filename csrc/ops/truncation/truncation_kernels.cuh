// CUDA kernels of the truncation room: exact radix selection of each row's threshold by a warp or a
// block, then the masked copy and the row's mean. Integer counting and fixed reduction trees only, so
// results do not depend on scheduling. No torch: the emulator runs this file on the CPU.
#pragma once

#include "truncation_math.h"

namespace wsfast::truncation {

inline constexpr int kThreads = 512;       // where a kernel does not say another number
inline constexpr int kShortThreads = 128;  // of select_short_row_kernel, a warp per row
inline constexpr int kBins = 2048;         // 11-bit digits

// Positive floats order like their bits, so selection walks the bits from the top, digit by digit.
// The sign bit of a positive key is 0, which leaves 31 or 63 bits.
template <class A>
struct KeyOf;

template <>
struct KeyOf<float> {
  using Key = uint32_t;
  static constexpr int levels = 3;
  WS_HD static int shift(int level) { return level == 0 ? 20 : level == 1 ? 9 : 0; }
  WS_HD static int width(int level) { return level == 2 ? 9 : 11; }
};

template <>
struct KeyOf<double> {
  using Key = unsigned long long;
  static constexpr int levels = 6;
  WS_HD static int shift(int level) { return level == 5 ? 0 : 52 - 11 * level; }
  WS_HD static int width(int level) { return level == 5 ? 8 : 11; }
};

template <class T>
using RowKey = KeyOf<acc_t<T>>;

// Digits of a row's keys. Half types widened to float leave the lowest one, bits 0 to 8, at 0.
template <class T>
inline constexpr int kLevels = sizeof(T) == 2 ? 2 : RowKey<T>::levels;

// The lowest bit that a key may have set.
template <class T>
inline constexpr int kLowestBit = std::is_same_v<T, half_t>       ? 13
                                  : std::is_same_v<T, bfloat16_t> ? 16
                                                                  : 0;

template <class To, class From>
WS_HD To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// How far the selection of one row has come: the key's leading digits, how many values share them,
// the rank among these, and the number of positives.
template <class Key>
struct Selection {
  Key prefix;
  long long sharing;
  long long rank;
  long long positives;
};

// The keys of the positive values with one prefix: one range, since those of NaN and of negative
// values lie above infinity's.
template <class T>
class Digits {
 public:
  using K = RowKey<T>;
  using Key = typename K::Key;

  WS_DEVICE Digits(Key prefix, int level) : prefix_(prefix), low_(K::shift(level)) {
    const Key last = prefix | ((Key(1) << (low_ + K::width(level))) - 1);
    const Key highest = same_bits<Key>(infinity<acc_t<T>>());
    first_ = prefix > 0 ? prefix : Key(1);
    span_ = (last < highest ? last : highest) - first_;
  }

  // Counts the value's digit if it has the prefix, and says so.
  WS_DEVICE bool count(T value, uint32_t* histogram) const {
    const Key key = same_bits<Key>(to_acc(value));
    const bool counts = key - first_ <= span_;
    if (counts) atomic_add(&histogram[(key - prefix_) >> low_], uint32_t(1));
    return counts;
  }

 private:
  Key prefix_, first_, span_;
  int low_;
};

// visit(i, values[i]) for all n values, shared out among `Threads` threads, 8 loads at a time: no
// load waits for the atomics of a visit.
template <int Threads, class T, class Visit>
WS_DEVICE void visit_values(const T* values, int n, const Visit& visit) {
  constexpr int at_once = 8;
  int i = threadIdx.x;
  for (; i + (at_once - 1) * Threads < n; i += at_once * Threads) {
    T loaded[at_once];
    for (int k = 0; k < at_once; ++k) loaded[k] = values[i + k * Threads];
    for (int k = 0; k < at_once; ++k) visit(i + k * Threads, loaded[k]);
  }
  for (; i < n; i += Threads) visit(i, values[i]);
}

// Sum of the values of earlier threads of the block. `scratch` holds one value per warp.
WS_DEVICE inline long long block_exclusive_sum(long long value, long long* scratch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  long long inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const long long below = warp_shfl_up(inclusive, step);
    if (lane >= step) inclusive += below;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  long long earlier = 0;
  for (int w = 0; w < warp; ++w) earlier += scratch[w];
  return earlier + inclusive - value;
}

template <int Threads, class Count>
WS_DEVICE void clear_bins(Count* histogram) {
  for (int k = 0; k < kBins / Threads; ++k) histogram[threadIdx.x + k * Threads] = 0;
}

// Finds the bin that holds the wanted rank and appends its digit to the prefix. At level 0 the
// histogram's total is the number of positives, which fixes the rank.
template <class K, int Threads, class Count>
WS_DEVICE void pick_digit(const Count* histogram, int level, double percentile,
                          Selection<typename K::Key>* selection, long long* scratch) {
  constexpr int bins = kBins / Threads;  // of a thread
  const int first = threadIdx.x * bins;
  long long mine = 0;
  for (int b = 0; b < bins; ++b) mine += histogram[first + b];
  long long below = block_exclusive_sum(mine, scratch);
  if (level == 0 && threadIdx.x == Threads - 1) {
    const long long positives = below + mine;
    selection->positives = selection->sharing = positives;
    selection->rank = positives > 0 ? percentile_rank(percentile, positives).upper : 0;
  }
  __syncthreads();
  const long long rank = selection->rank;
  __syncthreads();
  if (selection->positives == 0 || rank < below || rank >= below + mine) return;
  for (int b = 0; b < bins; ++b) {
    const long long count = histogram[first + b];
    if (rank < below + count) {
      using Key = typename K::Key;
      selection->prefix |= static_cast<Key>(first + b) << K::shift(level);
      selection->sharing = count;
      selection->rank = rank - below;
      return;
    }
    below += count;
  }
}

template <class A, class Key>
WS_DEVICE A selected_value(const Selection<Key>& selection) {
  return selection.positives == 0 ? infinity<A>() : same_bits<A>(selection.prefix);
}

// One warp per row of at most 32 * PerLane values, which its lanes hold. The threshold's bits are
// found from the top: one is set where no more values lie below than the wanted rank. Then, as
// asked by non-null pointers, it writes the truncated row and the mean of the kept values.
template <class T, int PerLane>
WS_GLOBAL void __launch_bounds__(kShortThreads, 8)
    select_short_row_kernel(const T* grads, int64_t rows, int64_t n, double percentile,
                            T* thresholds, T* truncated, acc_t<T>* weights) {
  using A = acc_t<T>;
  using Key = typename RowKey<T>::Key;
  constexpr int per_block = kShortThreads / kWarpSize;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * per_block + threadIdx.x / kWarpSize;
  if (row >= rows) return;  // whole warps
  const int lane = threadIdx.x % kWarpSize, length = static_cast<int>(n);
  Key keys[PerLane];  // 0 for what is not positive
  int positives = 0;
  for (int k = 0; k < PerLane; ++k) {
    const int i = lane + kWarpSize * k;
    const A x = i < length ? to_acc(grads[row * n + i]) : A(0);
    keys[k] = x > A(0) ? same_bits<Key>(x) : Key(0);
    positives += keys[k] != 0;
  }
  positives = warp_sum(positives);
  Key threshold = same_bits<Key>(infinity<A>());
  if (positives > 0) {
    const int upper = static_cast<int>(percentile_rank(percentile, positives).upper);
    const int rank = kWarpSize * PerLane - positives + upper;  // zeros come first
    threshold = 0;
    for (int bit = 8 * sizeof(Key) - 2; bit >= kLowestBit<T>; --bit) {
      const Key candidate = threshold | Key(1) << bit;
      int below = 0;
      for (int k = 0; k < PerLane; ++k) below += keys[k] < candidate;
      if (warp_sum(below) <= rank) threshold = candidate;
    }
  }
  A kept[PerLane];
  for (int k = 0; k < PerLane; ++k) {
    const int i = lane + kWarpSize * k;
    kept[k] = keys[k] >= threshold ? same_bits<A>(keys[k]) : A(0);
    if (truncated != nullptr && i < length) truncated[row * n + i] = from_acc<T>(kept[k]);
  }
  if (lane == 0) thresholds[row] = from_acc<T>(same_bits<A>(threshold));
  if (weights != nullptr) {  // the tree of kThreads threads, of which one adds k and k + apart
    constexpr int apart = kThreads / kWarpSize;
    A sum = 0;
    for (int k = 0; k < apart && k < PerLane; ++k) {
      sum += warp_sum(kept[k] + (k + apart < PerLane ? kept[k + apart] : A(0)));
    }
    if (lane == 0) weights[row] = sum / static_cast<A>(n);
  }
}

// out = the values that reach the threshold, 0 for the others
template <int Threads, class T>
WS_DEVICE void write_kept(const T* values, int n, acc_t<T> threshold, T* out) {
  visit_values<Threads>(values, n, [&](int i, T x) {
    out[i] = to_acc(x) >= threshold ? x : from_acc<T>(0);
  });
}

// The sum of what reaches the threshold, by the fixed tree of kThreads threads whatever number of
// them the block has. Once per kernel; every thread gets the result.
template <int Threads, class T, class Index>
WS_DEVICE acc_t<T> kept_sum(const T* values, Index n, acc_t<T> threshold) {
  constexpr int warps = kThreads / kWarpSize;
  __shared__ acc_t<T> sums[warps];
  const int lane = threadIdx.x % kWarpSize;
  for (int warp = threadIdx.x / kWarpSize; warp < warps; warp += Threads / kWarpSize) {
    acc_t<T> sum = 0;
    for (Index i = warp * kWarpSize + lane; i < n; i += kThreads) {
      const acc_t<T> g = to_acc(values[i]);
      sum += g >= threshold ? g : acc_t<T>(0);
    }
    sum = warp_sum(sum);
    if (lane == 0) sums[warp] = sum;
  }
  __syncthreads();
  acc_t<T> total = sums[0];
  for (int warp = 1; warp < warps; ++warp) total += sums[warp];
  return total;
}

// Threads for the longest rows of select_row_kernel: two rows of a half type fit an SM.
template <class T>
inline constexpr int kMostThreads = sizeof(T) == 2 ? 512 : 1024;

// Values of a row that its block may list: none of a half type, which has but two levels.
template <class T, int Threads>
inline constexpr int kListed = kLevels<T> > 2 ? 2 * Threads : 1;

// One block selects one row's threshold; the row is kept in shared memory where it fits (Cached).
// The values that share the digits so far are listed once they are few, and later levels go on with
// the list. Then, as asked by non-null pointers, the block writes the truncated row and the mean of
// the kept values.
template <class T, bool Cached, int Threads>
WS_GLOBAL void __launch_bounds__(Threads)
    select_row_kernel(const T* grads, int64_t row_length, double percentile, T* thresholds,
                      T* truncated, acc_t<T>* weights) {
  using A = acc_t<T>;
  WS_DYNAMIC_SHARED(T, cache);
  __shared__ uint32_t histogram[kBins];
  __shared__ T list[kListed<T, Threads>];
  __shared__ unsigned listed;
  __shared__ long long scratch[Threads / kWarpSize];
  __shared__ Selection<typename RowKey<T>::Key> selection;
  const int n = static_cast<int>(row_length);
  const T* row = grads + blockIdx.x * row_length;
  const T* values = Cached ? cache : row;  // after the first level
  if (threadIdx.x == 0) {
    selection = {0, 0, 0, 0};
    listed = 0;
  }
  bool has_list = false;
  for (int level = 0; level < kLevels<T>; ++level) {
    clear_bins<Threads>(histogram);
    __syncthreads();
    const Digits<T> digits(selection.prefix, level);
    const bool more = level + 1 < kLevels<T>, few = selection.sharing <= kListed<T, Threads>;
    const bool lists = level > 0 && more && few && !has_list;
    if (level == 0) {
      visit_values<Threads>(row, n, [&](int i, T x) {
        if (Cached) cache[i] = x;
        digits.count(x, histogram);
      });
    } else if (has_list) {
      const int length = static_cast<int>(listed);
      visit_values<Threads>(list, length, [&](int, T x) { digits.count(x, histogram); });
    } else {
      visit_values<Threads>(values, n, [&](int, T x) {
        if (digits.count(x, histogram) && lists) list[atomic_add(&listed, 1u)] = x;
      });
    }
    has_list = has_list || lists;
    __syncthreads();
    pick_digit<RowKey<T>, Threads>(histogram, level, percentile, &selection, scratch);
    __syncthreads();
  }
  const A threshold = selected_value<A>(selection);
  if (threadIdx.x == 0) thresholds[blockIdx.x] = from_acc<T>(threshold);
  if (truncated != nullptr) {
    write_kept<Threads>(values, n, threshold, truncated + blockIdx.x * row_length);
  }
  if (weights != nullptr) {
    const A sum = kept_sum<Threads>(values, n, threshold);
    if (threadIdx.x == 0) weights[blockIdx.x] = sum / static_cast<A>(n);
  }
}

}  // namespace wsfast::truncation
