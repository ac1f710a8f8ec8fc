// The rows of one large map on several threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <vector>

#include "../../core/torch_api.h"

namespace wsfast::levels {

inline constexpr int64_t kBandPixels = int64_t{1} << 17;  // worth a thread of its own

// Bands of the rows [first, last) of an image.
struct RowBands {
  int32_t first, last, rows;

  RowBands(int32_t first, int32_t last, int32_t width)
      : first(first),
        last(last),
        rows(static_cast<int32_t>(std::max<int64_t>(1, kBandPixels / width))) {}

  int64_t count() const { return (int64_t{last} - first + rows - 1) / rows; }
  int32_t begin(int64_t band) const { return static_cast<int32_t>(first + band * rows); }
  int32_t end(int64_t band) const {
    return static_cast<int32_t>(std::min<int64_t>(last, first + (band + 1) * rows));
  }
};

// body(begin, end) for bands of rows that do not depend on each other.
template <class Body>
void for_row_bands(const RowBands& bands, const Body& body) {
  share_tasks(bands.count(), 1, [&](Tasks tasks) {
    for (int64_t band; tasks.take(band);) body(bands.begin(band), bands.end(band));
  });
}

// Adds rows to a table of zeros: add_rows(begin, end, table). With several threads each has a table
// of its own, and merge(value, into) must not depend on the order.
template <class Value, class AddRows, class Merge>
void add_by_rows(const RowBands& bands, const AddRows& add_rows, const Merge& merge,
                 std::vector<Value>& table) {
  const bool small = static_cast<int64_t>(table.size()) <= bands.count() * kBandPixels / 4;
  if (bands.count() < 2 || !small || thread_count() == 1) {
    return add_rows(bands.first, bands.last, table.data());
  }
  std::mutex merging;
  share_tasks(bands.count(), 1, [&](Tasks tasks) {
    std::vector<Value> own(table.size());
    for (int64_t band; tasks.take(band);) {
      add_rows(bands.begin(band), bands.end(band), own.data());
    }
    const std::lock_guard<std::mutex> lock(merging);
    for (size_t i = 0; i < table.size(); ++i) merge(own[i], table[i]);
  });
}

}  // namespace wsfast::levels
