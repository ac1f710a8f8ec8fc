// What the model found in one image, and its JSON line.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace wsfast {

using Box = std::array<std::int64_t, 4>;  // x0, y0, x1, y1; half-open

struct Localization {
  std::int64_t predicted = -1;  // class; -1 where the scores are not finite
  double probability = 0;
  std::int64_t count = 0;  // components found; the boxes may be fewer
  std::vector<Box> boxes;  // in pixels of the program's output size
  std::vector<float> scores;
};

struct Size {
  int width = 0;
  int height = 0;
};

// The box of the pixels that enclose `box` in an image of another size.
Box enclosing_box(const Box& box, Size from, Size to);

// Where an image came from.
struct Origin {
  std::string file;
  std::int64_t frame = -1;  // of a video, from 0; -1 for an image
  Size size;
};

// One line of JSON, without the newline; boxes in pixels of the original image.
std::string json_line(const Localization& found, const Origin& origin, Size output,
                      const std::vector<std::string>& class_names, double milliseconds);

}  // namespace wsfast
