// An 8-bit image as the levels room works on it.
#pragma once

#include <cstdint>
#include <vector>

namespace wsfast::levels {

// An image with a column of zeros at its right: rows lie width + 1 bytes apart.
class Plane {
 public:
  void resize(int32_t height, int32_t width) {
    height_ = height;
    width_ = width;
    bytes_.resize(size_t{1} * height * stride());
    for (int32_t y = 0; y < height; ++y) row(y)[width] = 0;
  }

  int32_t height() const { return height_; }
  int32_t width() const { return width_; }
  int32_t stride() const { return width_ + 1; }
  uint8_t* row(int32_t y) { return bytes_.data() + int64_t{y} * stride(); }
  const uint8_t* row(int32_t y) const { return bytes_.data() + int64_t{y} * stride(); }

 private:
  int32_t height_ = 0, width_ = 0;
  std::vector<uint8_t> bytes_;
};

}  // namespace wsfast::levels
