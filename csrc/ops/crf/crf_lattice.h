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
inline constexpr int64_t kBatch = 64;         // look-ups whose first probes go without branches
inline constexpr int64_t kTrial = 2048;  // points after which a chunk judges whether simplices recur

// What one thread needs while it builds chunks, one after the other.
template <class A, class Key>
struct ChunkScratch {
  SlotTable<SimplexSlot> simplices;
  SlotTable<VertexSlot> vertices;
  Buffer<A> tile;
  Buffer<Key> keys;        // of the first vertex of a tile's points, then of its new simplices
  Buffer<uint32_t> codes;  // of the same
  Buffer<Key> corners;     // of its new simplices
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
  const A* weights_at(int64_t i, int n) const {
    const int64_t lane = i & (Lanes - 1);
    return weights + (i - lane) * n + lane;
  }
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
    Key* keys = scratch.keys.resize(kTileRow);
    uint32_t* codes = scratch.codes.resize(kTileRow);
    scratch.corners.resize(kTile * (D + 1));
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
      int32_t* simplex = chunk.simplex.data() + first;
      const int64_t before = chunk.simplices;
      if (recurring) {
        find_simplices(chunk, scratch, n, simplex);
        add_corners<D, false>(chunk, scratch, before);
      } else {
        number_simplices(chunk, n, simplex);
        add_corners<D, true>(chunk, scratch, before);
      }
    }
  }

  // Equal simplices get one number; keys and codes of new ones move to the front.
  void find_simplices(PointChunk& chunk, ChunkScratch<A, Key>& scratch, int64_t n,
                      int32_t* simplex) {
    Key* keys = scratch.keys.data();
    uint32_t* codes = scratch.codes.data();
    int64_t found = 0, count = chunk.simplices;
    int32_t missed[kBatch];
    for (int64_t begin = 0; begin < n; begin += kBatch) {
      const int64_t end = std::min(begin + kBatch, n);
      int64_t misses = 0;
      for (int64_t i = begin; i < end; ++i) {  // no branch that depends on the image
        const uint64_t key = static_cast<uint64_t>(keys[i]);
        const SimplexSlot& slot = scratch.simplices.first(SimplexSlot::hash(key, codes[i]));
        simplex[i] = slot.number;
        missed[misses] = static_cast<int32_t>(i);
        misses += !slot.holds(key, codes[i]);
      }
      for (int64_t j = 0; j < misses; ++j) {
        const int64_t i = missed[j];
        const uint64_t key = static_cast<uint64_t>(keys[i]);
        const uint32_t code = codes[i];
        SimplexSlot* slot = scratch.simplices.find(
            SimplexSlot::hash(key, code),
            [=](const SimplexSlot& held) { return held.holds(key, code); });
        if (!slot->empty()) {
          simplex[i] = slot->number;
          continue;
        }
        *slot = {key, code, static_cast<int32_t>(count)};
        simplex[i] = static_cast<int32_t>(count++);
        keys[found] = static_cast<Key>(key);
        codes[found++] = code;
        scratch.simplices.make_room(count, [](const SimplexSlot& held) {
          return SimplexSlot::hash(held.key, held.code);
        });
      }
    }
    chunk.simplices = count;
  }

  // Where hardly any simplex recurs, each point gets its own.
  static void number_simplices(PointChunk& chunk, int64_t n, int32_t* simplex) {
    for (int64_t i = 0; i < n; ++i) simplex[i] = static_cast<int32_t>(chunk.simplices++);
  }

  // The vertices of the simplices from `before` on. Prefetch: of tables beyond the caches.
  template <int D, bool Prefetch>
  void add_corners(PointChunk& chunk, ChunkScratch<A, Key>& scratch, int64_t before) {
    constexpr int64_t corners = D + 1;
    const int64_t count = (chunk.simplices - before) * corners;
    Key* keys = scratch.corners.data();
    for (int64_t i = 0; i < chunk.simplices - before; ++i) {
      list_corners<D>(scratch.keys[i], scratch.codes[i], keys + i * corners);
    }
    chunk.corners.grow(chunk.simplices * corners, before * corners);
    chunk.keys.grow(chunk.vertices + count, chunk.vertices);
    int32_t* vertex = chunk.corners.data() + before * corners;
    Key* known = chunk.keys.data();
    int64_t vertices = chunk.vertices;
    int32_t missed[kBatch];
    for (int64_t begin = 0; begin < count; begin += kBatch) {
      const int64_t end = std::min(begin + kBatch, count);
      int64_t misses = 0;
      if (Prefetch) {
        for (int64_t i = end; i < std::min(end + kBatch, count); ++i) {
          scratch.vertices.prefetch(hash_key(static_cast<uint64_t>(keys[i])));
        }
      }
      for (int64_t i = begin; i < end; ++i) {  // no branch that depends on the image
        const uint64_t hash = hash_key(static_cast<uint64_t>(keys[i]));
        const VertexSlot& slot = scratch.vertices.first(hash);
        vertex[i] = slot.number();
        missed[misses] = static_cast<int32_t>(i);
        misses += !holds(slot, known, keys[i], hash);
      }
      for (int64_t j = 0; j < misses; ++j) {
        const int64_t i = missed[j];
        const uint64_t hash = hash_key(static_cast<uint64_t>(keys[i]));
        VertexSlot* slot = find_vertex(scratch.vertices, known, keys[i], hash);
        if (!slot->empty()) {
          vertex[i] = slot->number();
          continue;
        }
        vertex[i] = static_cast<int32_t>(vertices);
        known[vertices++] = keys[i];
        *slot = {static_cast<uint32_t>(vertices), static_cast<uint32_t>(hash)};
        scratch.vertices.make_room(vertices, [=](const VertexSlot& held) {
          return hash_key(static_cast<uint64_t>(known[held.number()]));
        });
      }
    }
    chunk.vertices = vertices;
  }

  template <int D>
  void list_corners(Key key, uint32_t code, Key* corner) const {
    Key step[D + 1] = {};  // by rank; the last axis has stride 0
    for (int i = 0; i < D; ++i) step[code >> (4 * i) & 15u] = static_cast<Key>(keys_.stride[i]);
    corner[0] = key;
    for (int k = 1; k <= D; ++k) corner[k] = corner[k - 1] + 1 - step[D + 1 - k];
  }

  static bool holds(const VertexSlot& slot, const Key* keys, Key key, uint64_t hash) {
    const bool same = !slot.empty() & (slot.tag == static_cast<uint32_t>(hash));
    return sizeof(Key) == 4 ? same : same && keys[slot.number()] == key;
  }

  static VertexSlot* find_vertex(SlotTable<VertexSlot>& table, const Key* keys, Key key,
                                 uint64_t hash) {
    return table.find(hash, [=](const VertexSlot& held) { return holds(held, keys, key, hash); });
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
    SlotTable<VertexSlot>& table = scratch_[0].vertices;
    table.clear(4 * n);
    using Unsigned = std::make_unsigned_t<Key>;
    const Unsigned colours = static_cast<Unsigned>(d() + 1);
    Key* moved = moved_keys_.resize(n);  // keys one step along an axis, but for its own stride
    for (int64_t i = 0; i < n; ++i) {
      const uint64_t hash = hash_key(static_cast<uint64_t>(keys[i]));
      *table.find(hash, [](const VertexSlot&) { return false; }) = {static_cast<uint32_t>(i + 1),
                                                                   static_cast<uint32_t>(hash)};
      const bool wraps = static_cast<Unsigned>(keys[i]) % colours == 0;
      moved[i] = keys[i] + (wraps ? static_cast<Key>(keys_.wrapping_step()) : Key(-1));
    }
    int32_t* all = neighbours_.resize(2 * (d() + 1) * n);
    parallel_for(0, d() + 1, 1, [&](int64_t begin, int64_t end) {
      for (int64_t axis = begin; axis < end; ++axis) {
        const Key stride = static_cast<Key>(keys_.stride[axis]);
        int32_t* one = all + 2 * axis * n;
        int32_t* other = one + n;
        std::fill(other, other + n, -1);
        for (int64_t i = 0; i < n; ++i) {
          if (i + ahead < n) table.prefetch(hash_key(static_cast<uint64_t>(moved[i + ahead] + stride)));
          const Key key = moved[i] + stride;
          const uint64_t hash = hash_key(static_cast<uint64_t>(key));
          VertexSlot slot = table.first(hash);
          if (!slot.empty() & !holds(slot, keys, key, hash)) slot = *find_vertex(table, keys, key, hash);
          one[i] = slot.number();
          int32_t nowhere;
          *(slot.empty() ? &nowhere : other + slot.number()) = static_cast<int32_t>(i);
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
  Buffer<Key> vertex_keys_, moved_keys_;
  Buffer<A> on_vertices_, blurred_, spare_;
};

}  // namespace wsfast::crf
