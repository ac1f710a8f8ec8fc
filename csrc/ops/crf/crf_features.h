// Where the CPU lattice reads its points: feature planes, or the pixels of an image whose first two
// features are column and row.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "crf_math.h"

namespace wsfast::crf {

inline constexpr int64_t kTile = 1024;        // points read and embedded at a time
inline constexpr int64_t kTilePadding = 16;   // a vector may run past the last point
inline constexpr int64_t kTileRow = kTile + kTilePadding;

template <class T, class A>
void read_plane(const void* plane, int64_t first, int64_t count, A* out) {
  const T* values = static_cast<const T*>(plane) + first;
  if constexpr (std::is_same_v<T, uint8_t>) {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<A>(values[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<A>(to_acc(values[i]));
  }
}

template <class A>
struct PointSource {
  using Read = void (*)(const void* plane, int64_t first, int64_t count, A* out);

  int d, planes;
  int64_t points, width;  // width 0: no coordinates
  const char* data;
  int64_t plane_bytes;
  bool bytes;  // values of 0..255 by their type
  Read read;
  double coefficient[kLargestDimension];  // 1 / sigma times elevation_scale

  int first_plane() const { return d - planes; }

  // Features [first, first + count), d rows, each with readable values behind them: in `tile`, d rows
  // of kTileRow, where they do not lie in memory as they are.
  void read_tile(int64_t first, int64_t count, A* tile, const A** rows) const {
    if (width > 0) fill_coordinates(first, count, tile, tile + kTileRow);
    for (int i = 0; i < first_plane(); ++i) rows[i] = pad(tile + i * kTileRow, count);
    const bool in_place = read == read_plane<A, A> && first + count + kTilePadding <= points;
    for (int c = 0; c < planes; ++c) {
      const char* plane = data + c * plane_bytes;
      A* row = tile + (first_plane() + c) * kTileRow;
      if (!in_place) read(plane, first, count, row);
      rows[first_plane() + c] = in_place ? reinterpret_cast<const A*>(plane) + first : pad(row, count);
    }
  }

  // The packed keys of this source; bits are 0 where they do not fit or a value is not finite. Bytes
  // are looked through only where the range of their type does not fit.
  template <class Loops>
  KeySpace keys() const {
    double low[kLargestDimension] = {}, high[kLargestDimension] = {};
    if (width > 0) {
      high[0] = static_cast<double>(std::min(width, points) - 1);
      high[1] = static_cast<double>((points - 1) / width);
    }
    if (bytes) {
      std::fill(high + first_plane(), high + d, 255.0);
      const KeySpace space = keys_within(low, high);
      if (space.bits > 0) return space;
    }
    for (int c = 0; c < planes; ++c) {
      const int i = first_plane() + c;
      if (!bound_plane<Loops>(c, low[i], high[i])) return KeySpace{d, {}, 0, 0, 0};
    }
    return keys_within(low, high);
  }

 private:
  KeySpace keys_within(const double* low, const double* high) const {
    double scaled_low[kLargestDimension], scaled_high[kLargestDimension];
    for (int i = 0; i < d; ++i) {
      scaled_low[i] = low[i] * coefficient[i];
      scaled_high[i] = high[i] * coefficient[i];
    }
    return key_space(d, scaled_low, scaled_high, axis_bits<A>);
  }

  static const A* pad(A* row, int64_t count) {
    std::fill(row + count, row + count + kTilePadding, row[count - 1]);
    return row;
  }

  void fill_coordinates(int64_t first, int64_t count, A* xs, A* ys) const {
    int64_t y = first / width, x = first % width;
    for (int64_t i = 0; i < count; ++y, x = 0) {
      const int64_t start = i - x, end = std::min(count, start + width);
      for (; i < end; ++i) {
        xs[i] = static_cast<A>(static_cast<int32_t>(i - start));
        ys[i] = static_cast<A>(y);
      }
    }
  }

  template <class Loops>
  bool bound_plane(int c, double& low, double& high) const {
    A tile[kTileRow];
    low = INFINITY;
    high = -INFINITY;
    for (int64_t first = 0; first < points; first += kTile) {
      const int64_t count = std::min(kTile, points - first);
      const char* plane = data + c * plane_bytes;
      const bool in_place = read == read_plane<A, A> && count == kTile;
      if (!in_place) {
        read(plane, first, count, tile);
        pad(tile, count);
      }
      const A* values = in_place ? reinterpret_cast<const A*>(plane) + first : tile;
      if (!Loops::bounds(values, count, low, high)) return false;
    }
    return true;
  }
};

}  // namespace wsfast::crf
