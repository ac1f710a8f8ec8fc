// Union-find over numbers whose parents never come after them.
#pragma once

#include <algorithm>
#include <cstdint>

namespace wsfast::boxes {

inline int32_t find_root(int32_t* parent, int32_t node) {
  while (parent[node] != node) {
    parent[node] = parent[parent[node]];
    node = parent[node];
  }
  return node;
}

// The smaller root becomes the root of both.
inline void unite(int32_t* parent, int32_t a, int32_t b) {
  a = find_root(parent, a);
  b = find_root(parent, b);
  parent[std::max(a, b)] = std::min(a, b);
}

}  // namespace wsfast::boxes
