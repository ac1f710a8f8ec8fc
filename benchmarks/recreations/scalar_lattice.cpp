// The dense-CRF energy and its gradient as the widely used C++ bilateral filter computes them,
// written anew from the description of the algorithm: a lattice per image, hashed with short keys
// and linear probing, filtered one channel at a time in scalar floats, OpenMP over images.
// For comparison in benchmarks only.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

constexpr int D = 5;

struct Key {
  short at[D];
  bool operator==(const Key& other) const { return std::memcmp(at, other.at, sizeof at) == 0; }
};

class HashTable {
 public:
  explicit HashTable(size_t points) : capacity_(2 * points), slots_(capacity_, -1) {
    keys_.reserve(points / 2);
  }
  int find(const Key& key, bool create) {
    if (create && 2 * keys_.size() >= capacity_) grow();
    size_t hash = 0;
    for (short coordinate : key.at) hash = (hash + coordinate) * 1664525;
    for (size_t at = hash % capacity_;; at = at + 1 == capacity_ ? 0 : at + 1) {
      if (slots_[at] < 0) {
        if (!create) return -1;
        keys_.push_back(key);
        return slots_[at] = static_cast<int>(keys_.size()) - 1;
      }
      if (keys_[slots_[at]] == key) return slots_[at];
    }
  }
  const std::vector<Key>& keys() const { return keys_; }

 private:
  void grow() {
    std::vector<Key> old;
    old.swap(keys_);
    capacity_ *= 2;
    slots_.assign(capacity_, -1);
    for (const Key& key : old) find(key, true);
  }
  size_t capacity_;
  std::vector<int> slots_;
  std::vector<Key> keys_;
};

class Lattice {
 public:
  Lattice(const float* features, int points)
      : points_(points), vertex_(points * (D + 1)), weight_(points * (D + 1)) {
    HashTable table(static_cast<size_t>(points) * (D + 1));
    float scale[D];
    for (int i = 0; i < D; ++i) {
      scale[i] = static_cast<float>((D + 1) * std::sqrt(2.0 / 3.0) / std::sqrt((i + 1.0) * (i + 2.0)));
    }
    for (int p = 0; p < points; ++p) embed(features + p * D, scale, p, table);
    vertices_ = static_cast<int>(table.keys().size());
    for (int axis = 0; axis <= D; ++axis) {
      one_[axis].resize(vertices_);
      other_[axis].resize(vertices_);
      for (int v = 0; v < vertices_; ++v) {
        Key below, above;
        for (int i = 0; i < D; ++i) {
          below.at[i] = static_cast<short>(table.keys()[v].at[i] - 1);
          above.at[i] = static_cast<short>(table.keys()[v].at[i] + 1);
        }
        if (axis < D) {
          below.at[axis] = static_cast<short>(table.keys()[v].at[axis] + D);
          above.at[axis] = static_cast<short>(table.keys()[v].at[axis] - D);
        }
        one_[axis][v] = table.find(below, false) + 1;
        other_[axis][v] = table.find(above, false) + 1;
      }
    }
  }

  void filter(const float* in, float* out) const {
    std::vector<float> values(vertices_ + 1, 0.0f), next(vertices_ + 1, 0.0f);
    for (int p = 0; p < points_; ++p) {
      for (int k = 0; k <= D; ++k) values[vertex_[p * (D + 1) + k] + 1] += weight_[p * (D + 1) + k] * in[p];
    }
    for (int axis = 0; axis <= D; ++axis) {
      for (int v = 0; v < vertices_; ++v) {
        next[v + 1] = values[v + 1] + 0.5f * (values[one_[axis][v]] + values[other_[axis][v]]);
      }
      values.swap(next);
      values[0] = 0.0f;
    }
    const float alpha = 1.0f / (1.0f + std::pow(2.0f, -D));
    for (int p = 0; p < points_; ++p) {
      float sum = 0.0f;
      for (int k = 0; k <= D; ++k) sum += weight_[p * (D + 1) + k] * values[vertex_[p * (D + 1) + k] + 1];
      out[p] = alpha * sum;
    }
  }

 private:
  void embed(const float* feature, const float* scale, int p, HashTable& table) {
    float elevated[D + 1], sum = 0.0f;
    for (int j = D; j > 0; --j) {
      const float scaled = feature[j - 1] * scale[j - 1];
      elevated[j] = sum - j * scaled;
      sum += scaled;
    }
    elevated[0] = sum;
    int rounded[D + 1], rank[D + 1] = {}, total = 0;
    for (int i = 0; i <= D; ++i) {
      const int quotient = static_cast<int>(std::rint(elevated[i] * (1.0f / (D + 1))));
      rounded[i] = quotient * (D + 1);
      total += quotient;
    }
    for (int i = 0; i < D; ++i) {
      for (int j = i + 1; j <= D; ++j) {
        if (elevated[i] - rounded[i] < elevated[j] - rounded[j]) ++rank[i];
        else ++rank[j];
      }
    }
    for (int i = 0; i <= D; ++i) {
      rank[i] += total;
      if (rank[i] < 0) {
        rank[i] += D + 1;
        rounded[i] += D + 1;
      } else if (rank[i] > D) {
        rank[i] -= D + 1;
        rounded[i] -= D + 1;
      }
    }
    float barycentric[D + 2] = {};
    for (int i = 0; i <= D; ++i) {
      const float v = (elevated[i] - rounded[i]) * (1.0f / (D + 1));
      barycentric[D - rank[i]] += v;
      barycentric[D + 1 - rank[i]] -= v;
    }
    barycentric[0] += 1.0f + barycentric[D + 1];
    for (int k = 0; k <= D; ++k) {
      Key key;
      for (int i = 0; i < D; ++i) {
        key.at[i] = static_cast<short>(rounded[i] + (rank[i] <= D - k ? k : k - (D + 1)));
      }
      vertex_[p * (D + 1) + k] = table.find(key, true);
      weight_[p * (D + 1) + k] = barycentric[k];
    }
  }

  int points_, vertices_ = 0;
  std::vector<int> vertex_;
  std::vector<float> weight_;
  std::vector<int> one_[D + 1], other_[D + 1];
};

}  // namespace

// images (n, 3, h, w) and values (n, k, h, w): filtered = A values, per image and channel.
extern "C" void bilateral_filter_batch(const float* images, const float* values, float* filtered, int n,
                                       int k, int h, int w, float sigma_rgb, float sigma_xy) {
#pragma omp parallel for
  for (int b = 0; b < n; ++b) {
    const int points = h * w;
    std::vector<float> features(static_cast<size_t>(points) * D);
    for (int p = 0; p < points; ++p) {
      features[p * D] = static_cast<float>(p % w) / sigma_xy;
      features[p * D + 1] = static_cast<float>(p / w) / sigma_xy;
      for (int c = 0; c < 3; ++c) {
        features[p * D + 2 + c] = images[(static_cast<size_t>(b) * 3 + c) * points + p] / sigma_rgb;
      }
    }
    const Lattice lattice(features.data(), points);
    for (int c = 0; c < k; ++c) {
      const size_t plane = (static_cast<size_t>(b) * k + c) * points;
      lattice.filter(values + plane, filtered + plane);
    }
  }
}
