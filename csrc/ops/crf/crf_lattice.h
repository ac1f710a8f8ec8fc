// The lattice of one image on the CPU. Points are taken in chunks whose number depends on the image
// alone, so results are the same for any number of threads: each chunk finds its own simplices and
// vertices, the vertices of all chunks are sorted by key and joined, and every chunk adds its values
// to them in turn.
#pragma once

#include <cstring>
#include <vector>

#include "../../core/torch_api.h"
#include "crf_features.h"
#include "crf_math.h"
#include "crf_tables.h"

namespace wsfast::crf {

inline constexpr int64_t kChunk = 32768;      // points of a chunk, roughly
inline constexpr int64_t kVertexGrain = 4096;
inline constexpr int64_t kTrial = 2048;  // points after which a chunk judges whether simplices recur

// What one thread needs while it builds chunks, one after the other.
template <class A, class Key>
struct ChunkScratch {
  SlotTable simplices, vertices;
  Buffer<A> tile;
  Buffer<Key> tile_keys, simplex_keys;
  Buffer<uint32_t> tile_codes, simplex_codes;
};

template <class A, class Key>
struct Chunk {
  int64_t begin, end;
  int64_t simplices = 0, vertices = 0;
  Buffer<A> weights;           // per block of lanes: d + 1 vectors
  Buffer<int32_t> simplex;     // of every point
  Buffer<int32_t> corners;     // of every simplex: d + 1 vertices of this chunk
  Buffer<Key> keys;            // of every vertex
  Buffer<int32_t> joined;      // this chunk's vertices as the image's
  Buffer<A> values;            // rows of this chunk's vertices
};

// Both neighbours of every vertex along one axis; -1 where there is none.
struct NeighbourPair {
  const int32_t* one;
  const int32_t* other;
};

// All axes in turn from `in`, back and forth between `a` and `b`, which may be `in`; returns the last.
template <class Loops, class A, int W, class Pair>
A* blur_axes(const A* in, A* a, A* b, int axes, int64_t vertices, bool transpose, const Pair& pair) {
  for (int step = 0; step < axes; ++step) {
    const NeighbourPair near = pair(transpose ? axes - 1 - step : step);
    A* to = step % 2 == 0 ? a : b;
    parallel_for(0, vertices, kVertexGrain, [&](int64_t begin, int64_t end) {
      Loops::template blur<A, W>(in, near.one, near.other, begin, end, to);
    });
    in = to;
  }
  return axes % 2 == 0 ? b : a;
}

// The points of a chunk as splat and slice read them: weights in blocks of lanes.
template <class A, int Lanes>
struct BlockPoints {
  static constexpr int stride = Lanes;
  const A* weights;
  const int32_t* simplex;
  const int32_t* simplex_vertices;
  int corners;

  const int32_t* vertices_at(int64_t i, int n) const { return simplex_vertices + int64_t{simplex[i]} * n; }
  const A* weights_at(int64_t i, int n) const { return weights + i / Lanes * Lanes * n + i % Lanes; }
};

template <class Loops, class A, class Key>
class ImageLattice {
 public:
  static constexpr int kLanes = Loops::template lanes<A>;

  // `keys` must fit Key.
  void build(const PointSource<A>& source, const KeySpace& keys) {
    keys_ = keys;
    points_ = source.points;
    split(source.points);
    parallel_for(0, chunk_count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) build_chunk(source, chunks_[c], scratch_[begin]);
    });
    join_vertices();
    find_neighbours();
  }

  int d() const { return keys_.d; }
  int64_t points() const { return points_; }
  int64_t vertices() const { return vertices_; }
  // (d + 1, 2, vertices); -1 where there is none
  const int32_t* neighbours() const { return neighbours_.data(); }

  // Row by row (points, d + 1).
  void export_points(int32_t* vertices, A* weights) const {
    const int64_t corners = d() + 1;
    for (int64_t c = 0; c < chunk_count(); ++c) {
      const Chunk<A, Key>& chunk = chunks_[c];
      for (int64_t i = 0; i < chunk.end - chunk.begin; ++i) {
        const A* block = chunk.weights.data() + i / kLanes * kLanes * corners + i % kLanes;
        const int32_t* local = chunk.corners.data() + chunk.simplex[i] * corners;
        for (int64_t k = 0; k < corners; ++k, ++vertices, ++weights) {
          *vertices = chunk.joined[local[k]];
          *weights = block[k * kLanes];
        }
      }
    }
  }

  // Up to W channel planes: energy[c] = s' A s, and A s into `filtered` unless that is null.
  template <int W, class T>
  void apply(const T* values, int channels, const A* roi, Direction direction, double* energy,
             T* filtered) {
    A* v = rows<W>(on_vertices_);
    A* a = rows<W>(blurred_);
    A* b = rows<W>(spare_);
    splat<W>(values, channels, roi, v);
    A* forward = blur<W>(v, a, b, false);
    double sums[W] = {};
    Loops::template dot<A, W>(v, forward, vertices_, sums);
    const double scale = blur_scale(d());
    for (int c = 0; c < channels; ++c) energy[c] = scale * sums[c];
    if (filtered == nullptr) return;
    A* result = forward;
    if (direction != Direction::forward) {
      A* free = forward == a ? b : a;
      result = blur<W>(v, free, v, true);
    }
    if (direction == Direction::symmetric) Loops::add(forward, vertices_ * W, result);
    const double share = direction == Direction::symmetric ? 0.5 : 1.0;
    slice<W>(result, channels, roi, static_cast<A>(share * scale), filtered);
  }

 private:
  using PointChunk = Chunk<A, Key>;

  int64_t chunk_count() const { return chunk_count_; }

  void split(int64_t points) {
    chunk_count_ = std::max<int64_t>(1, (points + kChunk / 2) / kChunk);
    if (static_cast<int64_t>(chunks_.size()) < chunk_count_) {
      chunks_.resize(chunk_count_);
      scratch_.resize(chunk_count_);
    }
    const int64_t length = ceil_div(ceil_div(points, chunk_count_), kLargestLanes) * kLargestLanes;
    for (int64_t c = 0; c < chunk_count_; ++c) {
      chunks_[c].begin = std::min(points, c * length);
      chunks_[c].end = std::min(points, (c + 1) * length);
    }
  }

  void build_chunk(const PointSource<A>& source, PointChunk& chunk,
                   ChunkScratch<A, Key>& scratch) {
    switch (d()) {
      case 1: return build_chunk<1>(source, chunk, scratch);
      case 2: return build_chunk<2>(source, chunk, scratch);
      case 3: return build_chunk<3>(source, chunk, scratch);
      case 4: return build_chunk<4>(source, chunk, scratch);
      case 5: return build_chunk<5>(source, chunk, scratch);
      case 6: return build_chunk<6>(source, chunk, scratch);
      case 7: return build_chunk<7>(source, chunk, scratch);
      default: return build_chunk<8>(source, chunk, scratch);
    }
  }

  template <int D>
  void build_chunk(const PointSource<A>& source, PointChunk& chunk,
                   ChunkScratch<A, Key>& scratch) {
    const int64_t count = chunk.end - chunk.begin;
    chunk.weights.resize((count + kLargestLanes) * (D + 1));
    chunk.simplex.resize(count);
    chunk.simplices = chunk.vertices = 0;
    scratch.simplices.clear(std::min<int64_t>(count, kChunk / 4));
    scratch.vertices.clear(std::min<int64_t>(count, kChunk / 8));
    A* tile = scratch.tile.resize(D * kTileRow);
    Key* keys = scratch.tile_keys.resize(kTileRow);
    uint32_t* codes = scratch.tile_codes.resize(kTileRow);
    A coefficient[D];
    const A* features[D];
    for (int i = 0; i < D; ++i) {
      coefficient[i] = static_cast<A>(source.coefficient[i]);
      features[i] = tile + i * kTileRow;
    }
    for (int64_t first = 0; first < count; first += kTile) {
      const int64_t n = std::min(kTile, count - first);
      source.read_tile(chunk.begin + first, n, tile);
      Loops::template embed<A, Key, D>(features, coefficient, keys_,
                                       ceil_div(n, kLanes) * kLanes,
                                       chunk.weights.data() + first * (D + 1), keys, codes);
      const bool recurring = first < kTrial || 8 * chunk.simplices < 7 * first;
      find_simplices<D>(chunk, scratch, first, n, recurring);
    }
  }

  // Simplices that recur get one number; where hardly any does, each point gets its own.
  template <int D>
  void find_simplices(PointChunk& chunk, ChunkScratch<A, Key>& scratch, int64_t first, int64_t n,
                      bool recurring) {
    constexpr int64_t ahead = 12;
    const Key* keys = scratch.tile_keys.data();
    const uint32_t* codes = scratch.tile_codes.data();
    scratch.simplex_keys.grow(chunk.simplices + n, chunk.simplices);
    scratch.simplex_codes.grow(chunk.simplices + n, chunk.simplices);
    chunk.corners.grow((chunk.simplices + n) * (D + 1), chunk.simplices * (D + 1));
    int32_t* simplex = chunk.simplex.data() + first;
    const auto hash_of = [&](int64_t entry) {
      return hash_pair(static_cast<uint64_t>(scratch.simplex_keys[entry]),
                       scratch.simplex_codes[entry]);
    };
    for (int64_t i = 0; i < n; ++i) {
      const Key key = keys[i];
      const uint32_t code = codes[i];
      if (recurring) {
        if (i + ahead < n) {
          scratch.simplices.prefetch(hash_pair(static_cast<uint64_t>(keys[i + ahead]), codes[i + ahead]));
        }
        const uint64_t hash = hash_pair(static_cast<uint64_t>(key), code);
        const auto same = [&](int64_t entry) {
          return scratch.simplex_keys[entry] == key && scratch.simplex_codes[entry] == code;
        };
        uint64_t at = 0;
        const int64_t known = scratch.simplices.find(hash, same, at);
        if (known >= 0) {
          simplex[i] = static_cast<int32_t>(known);
          continue;
        }
        scratch.simplices.put(at, hash, chunk.simplices);
        scratch.simplex_keys[chunk.simplices] = key;
        scratch.simplex_codes[chunk.simplices] = code;
        scratch.simplices.reserve_one(chunk.simplices + 1, hash_of);
      }
      simplex[i] = static_cast<int32_t>(chunk.simplices);
      add_corners<D>(chunk, scratch, key, code);
      ++chunk.simplices;
    }
  }

  template <int D>
  void add_corners(PointChunk& chunk, ChunkScratch<A, Key>& scratch, Key key, uint32_t code) {
    Key step[D + 1] = {};  // by rank; the last axis has stride 0
    for (int i = 0; i < D; ++i) step[code >> (4 * i) & 15u] = static_cast<Key>(keys_.stride[i]);
    Key corner[D + 1];
    corner[0] = key;
    for (int k = 1; k <= D; ++k) corner[k] = corner[k - 1] + 1 - step[D + 1 - k];
    for (int k = 0; k <= D; ++k) scratch.vertices.prefetch(hash_key(static_cast<uint64_t>(corner[k])));
    chunk.keys.grow(chunk.vertices + D + 1, chunk.vertices);
    int32_t* corners = chunk.corners.data() + chunk.simplices * (D + 1);
    for (int k = 0; k <= D; ++k) {
      const uint64_t hash = hash_key(static_cast<uint64_t>(corner[k]));
      uint64_t at = 0;
      int64_t vertex = scratch.vertices.find(hash, same_key(chunk.keys.data(), corner[k]), at);
      if (vertex < 0) {
        vertex = chunk.vertices++;
        chunk.keys[vertex] = corner[k];
        scratch.vertices.put(at, hash, vertex);
        scratch.vertices.reserve_one(chunk.vertices, [&](int64_t entry) {
          return hash_key(static_cast<uint64_t>(chunk.keys[entry]));
        });
      }
      corners[k] = static_cast<int32_t>(vertex);
    }
  }

  // The slot's 32 bits of hash are those of a 32-bit key.
  static auto same_key(const Key* keys, Key key) {
    return [keys, key](int64_t entry) { return sizeof(Key) == 4 || keys[entry] == key; };
  }

  void join_vertices() {
    int64_t total = 0;
    for (int64_t c = 0; c < chunk_count_; ++c) total += chunks_[c].vertices;
    auto* items = sorted_.resize(2 * total);
    int64_t at = 0;
    for (int64_t c = 0; c < chunk_count_; ++c) {
      chunks_[c].joined.resize(chunks_[c].vertices);
      for (int64_t i = 0; i < chunks_[c].vertices; ++i, ++at) {
        items[at] = {chunks_[c].keys[i], static_cast<int32_t>(at)};
      }
    }
    items = radix_sort(items, items + total, total, keys_.bits);
    int32_t* number = numbers_.resize(total);
    Key* keys = vertex_keys_.resize(total);
    vertices_ = 0;
    for (int64_t i = 0; i < total; ++i) {
      if (i == 0 || items[i].key != items[i - 1].key) keys[vertices_++] = items[i].key;
      number[items[i].source] = static_cast<int32_t>(vertices_ - 1);
    }
    for (int64_t c = 0; c < chunk_count_; ++c) {
      std::copy(number, number + chunks_[c].vertices, chunks_[c].joined.data());
      number += chunks_[c].vertices;
    }
  }

  void find_neighbours() {
    constexpr int64_t ahead = 8;
    const int64_t n = vertices_;
    const Key* keys = vertex_keys_.data();
    SlotTable& table = scratch_[0].vertices;
    table.clear(4 * n);
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t hash = hash_key(static_cast<uint64_t>(keys[i]));
      uint64_t at = 0;
      table.find(hash, [](int64_t) { return false; }, at);
      table.put(at, hash, i);
    }
    int32_t* all = neighbours_.resize(2 * (d() + 1) * n);
    parallel_for(0, d() + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis) {
        int32_t* one = all + 2 * axis * n;
        int32_t* other = one + n;
        std::fill(other, other + n, -1);
        const int64_t stays = keys_.stride[axis] - 1;
        const int64_t wraps = keys_.stride[axis] + d() - keys_.stride_sum();
        const auto target = [&](int64_t i) {
          return static_cast<Key>(keys[i] + (keys[i] % (d() + 1) == 0 ? wraps : stays));
        };
        for (int64_t i = 0; i < n; ++i) {
          if (i + ahead < n) table.prefetch(hash_key(static_cast<uint64_t>(target(i + ahead))));
          const Key wanted = target(i);
          uint64_t at = 0;
          const int64_t found = table.find(hash_key(static_cast<uint64_t>(wanted)), same_key(keys, wanted), at);
          one[i] = static_cast<int32_t>(found);
          if (found >= 0) other[found] = static_cast<int32_t>(i);
        }
      }
    });
  }

  // Room for a row per vertex; row -1 is 0.
  template <int W>
  A* rows(Buffer<A>& buffer) {
    A* all = buffer.resize((vertices_ + 1) * W);
    std::fill(all, all + W, A(0));
    return all + W;
  }

  template <int W, class T>
  void splat(const T* values, int channels, const A* roi, A* vertices) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* sums = chunk.values.resize(chunk.vertices * W);
        std::fill(sums, sums + chunk.vertices * W, A(0));
        const auto run = [&]<int Corners>() {
          Loops::template splat<A, W, Corners>(values, points_, channels, roi, chunk.begin,
                                               chunk.end, points_of(chunk), sums);
        };
        d() == 5 ? run.template operator()<6>() : run.template operator()<0>();
      }
    });
    std::fill(vertices, vertices + vertices_ * W, A(0));
    for (int64_t c = 0; c < chunk_count_; ++c) {
      const PointChunk& chunk = chunks_[c];
      for (int64_t i = 0; i < chunk.vertices; ++i) {
        Loops::add(chunk.values.data() + i * W, W, vertices + chunk.joined[i] * int64_t{W});
      }
    }
  }

  template <int W, class T>
  void slice(const A* vertices, int channels, const A* roi, A scale, T* planes) {
    parallel_for(0, chunk_count_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        PointChunk& chunk = chunks_[c];
        A* own = chunk.values.resize(chunk.vertices * W);
        for (int64_t i = 0; i < chunk.vertices; ++i) {
          const A* row = vertices + chunk.joined[i] * int64_t{W};
          std::copy(row, row + W, own + i * W);
        }
        const auto run = [&]<int Corners>() {
          Loops::template slice<A, W, Corners>(planes, points_, channels, roi, chunk.begin,
                                               chunk.end, points_of(chunk), own, scale);
        };
        d() == 5 ? run.template operator()<6>() : run.template operator()<0>();
      }
    });
  }

  BlockPoints<A, kLanes> points_of(const PointChunk& chunk) const {
    return {chunk.weights.data(), chunk.simplex.data(), chunk.corners.data(), d() + 1};
  }

  template <int W>
  A* blur(const A* in, A* a, A* b, bool transpose) const {
    const auto pair = [&](int axis) {
      const int32_t* one = neighbours_.data() + 2 * axis * vertices_;
      return NeighbourPair{one, one + vertices_};
    };
    return blur_axes<Loops, A, W>(in, a, b, d() + 1, vertices_, transpose, pair);
  }

  static constexpr int64_t kLargestLanes = 16;

  KeySpace keys_{};
  int64_t points_ = 0, chunk_count_ = 0, vertices_ = 0;
  std::vector<PointChunk> chunks_;
  std::vector<ChunkScratch<A, Key>> scratch_;
  Buffer<KeyAndSource<Key>> sorted_;
  Buffer<int32_t> numbers_, neighbours_;
  Buffer<Key> vertex_keys_;
  Buffer<A> on_vertices_, blurred_, spare_;
};

}  // namespace wsfast::crf
