// Vectors of the compiler's own types for the loops of the crf room, and how their lanes are moved
// about. crf_simd.h includes it within its namespace per instruction set. No include guard.

inline constexpr int kVectorBytes = simd::WS_SIMD::Vec::lanes * static_cast<int>(sizeof(float));

// A vector of values as find_simplex wants it.
template <class A>
struct VectorLane {
  using Scalar = A;
  using Whole = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
  typedef A Real __attribute__((vector_size(kVectorBytes)));
  typedef Whole Int __attribute__((vector_size(kVectorBytes)));
  static constexpr int lanes = kVectorBytes / static_cast<int>(sizeof(A));

  static Int round(Real value) {  // to the nearest, ties to even; |value| < 2^22
    constexpr A magic = sizeof(A) == 4 ? A(12582912.0) : A(6755399441055744.0);
    const Real shifted = value + magic;
    return __builtin_convertvector(shifted - magic, Int);
  }
  static Real real(Int value) { return __builtin_convertvector(value, Real); }
  static Int less(Real a, Real b) { return a < b; }
  static Int below(Int a, Whole b) { return a < b; }
  static Int above(Int a, Whole b) { return a > b; }
  static Real min(Real a, Real b) { return b < a ? b : a; }
  static Real max(Real a, Real b) { return b > a ? b : a; }
};

#include "crf_simplex.h"

// Lane l of the result is lane Pattern::at(l) of `a` and `b` laid end to end.
template <class A, class Pattern, size_t... I>
typename VectorLane<A>::Real shuffle(typename VectorLane<A>::Real a, typename VectorLane<A>::Real b,
                                     std::index_sequence<I...>) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, Pattern::at(I)...);
#else
  return __builtin_shuffle(a, b, typename VectorLane<A>::Int{Pattern::at(I)...});
#endif
}

template <class A, class Pattern>
typename VectorLane<A>::Real shuffle(typename VectorLane<A>::Real a, typename VectorLane<A>::Real b) {
  return shuffle<A, Pattern>(a, b, std::make_index_sequence<VectorLane<A>::lanes>());
}

// Of two vectors, swaps the lanes with bit `Bit` of the one for those without of the other.
template <int Lanes, int Bit, bool High>
struct Exchange {
  static constexpr int at(int lane) {
    const bool set = (lane & Bit) != 0;
    return High ? (set ? lane + Lanes : lane ^ Bit) : (set ? (lane ^ Bit) + Lanes : lane);
  }
};

// Each of values 0..Limit W times; the last also for the lanes that are left.
template <int W, int Limit>
struct Spread {
  static constexpr int at(int lane) { return std::min(lane / W, Limit); }
};

// W values over and over.
template <int W>
struct Repeat {
  static constexpr int at(int lane) { return lane % W; }
};

template <int Bit>
struct Flip {
  static constexpr int at(int lane) { return lane ^ Bit; }
};
