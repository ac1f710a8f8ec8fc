// Which simplex of the permutohedral lattice holds a point (Adams et al. 2010). Written once for
// one value or a vector of them; `Lane` says what those are. No include guard: crf_math.h includes
// it for single values, crf_simd.h within its namespace per instruction set.

// Vertex 0 is (D + 1) times the quotients; the axis of rank r takes part in the step from vertex
// D - r to the next.
template <class Lane, int D>
struct Simplex {
  typename Lane::Int quotient[D + 1], rank[D + 1];
  typename Lane::Real weight[D + 1];
};

// `scaled` are features over sigma times elevation_scale.
template <class Lane, int D>
WS_HD inline void find_simplex(const typename Lane::Real* scaled, Simplex<Lane, D>& simplex) {
  using Real = typename Lane::Real;
  using Int = typename Lane::Int;
  using A = typename Lane::Scalar;
  Real elevated[D + 1];
  Real sum = scaled[D - 1] * A(0);
  for (int j = D; j > 0; --j) {
    elevated[j] = sum - scaled[j - 1] * A(j);
    sum = sum + scaled[j - 1];
  }
  elevated[0] = sum;

  Real rest[D + 1];
  Int total = Lane::round(elevated[0] * A(1.0 / (D + 1)));
  simplex.quotient[0] = total;
  for (int i = 1; i <= D; ++i) {
    simplex.quotient[i] = Lane::round(elevated[i] * A(1.0 / (D + 1)));
    total = total + simplex.quotient[i];
  }
  for (int i = 0; i <= D; ++i) {
    rest[i] = elevated[i] - Lane::real(simplex.quotient[i]) * A(D + 1);
    simplex.rank[i] = total + i;
  }
  for (int i = 0; i < D; ++i) {
    for (int j = i + 1; j <= D; ++j) {
      const Int below = Lane::less(rest[i], rest[j]);  // -1 or 0
      simplex.rank[i] = simplex.rank[i] - below;
      simplex.rank[j] = simplex.rank[j] + below;
    }
  }
  for (int i = 0; i <= D; ++i) {  // back onto the plane whose coordinates sum to 0
    const Int wrap = Lane::above(simplex.rank[i], D) - Lane::below(simplex.rank[i], 0);
    simplex.rank[i] = simplex.rank[i] + wrap * (D + 1);
    simplex.quotient[i] = simplex.quotient[i] + wrap;
    rest[i] = (elevated[i] - Lane::real(simplex.quotient[i]) * A(D + 1)) * A(1.0 / (D + 1));
  }
  for (int i = 0; i < D; ++i) {  // by rank: in descending order
    for (int j = 0; j < D - i; ++j) {
      const Real high = Lane::max(rest[j], rest[j + 1]);
      rest[j + 1] = Lane::min(rest[j], rest[j + 1]);
      rest[j] = high;
    }
  }
  simplex.weight[0] = rest[D] - rest[0] + A(1);
  for (int k = 1; k <= D; ++k) simplex.weight[k] = rest[D - k] - rest[D + 1 - k];
}
