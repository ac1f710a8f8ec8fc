#include "localization.h"

#include <cmath>
#include <nlohmann/json.hpp>

namespace wsfast {
namespace {

using nlohmann::ordered_json;

std::int64_t scaled_down(std::int64_t at, std::int64_t from, std::int64_t to) {
  return at * to / from;
}

std::int64_t scaled_up(std::int64_t at, std::int64_t from, std::int64_t to) {
  return (at * to + from - 1) / from;
}

// Six decimals, printed without the tail that binary fractions leave.
double six_decimals(double value) { return std::round(value * 1e6) / 1e6; }

void add_prediction(ordered_json& line, const Localization& found,
                    const std::vector<std::string>& class_names) {
  if (found.predicted < 0) {
    for (const char* key : {"class", "class_name", "probability"}) line[key] = nullptr;
    return;
  }
  line["class"] = found.predicted;
  if (static_cast<std::size_t>(found.predicted) < class_names.size()) {
    line["class_name"] = class_names[static_cast<std::size_t>(found.predicted)];
  }
  line["probability"] = six_decimals(found.probability);
}

}  // namespace

Box enclosing_box(const Box& box, Size from, Size to) {
  return {scaled_down(box[0], from.width, to.width), scaled_down(box[1], from.height, to.height),
          scaled_up(box[2], from.width, to.width), scaled_up(box[3], from.height, to.height)};
}

std::string json_line(const Localization& found, const Origin& origin, Size output,
                      const std::vector<std::string>& class_names, double milliseconds) {
  ordered_json line;
  line["file"] = origin.file;
  if (origin.frame >= 0) line["frame"] = origin.frame;
  line["width"] = origin.size.width;
  line["height"] = origin.size.height;
  add_prediction(line, found, class_names);
  line["count"] = found.count;
  line["boxes"] = ordered_json::array();
  for (const Box& box : found.boxes) {
    line["boxes"].push_back(enclosing_box(box, output, origin.size));
  }
  line["scores"] = ordered_json::array();
  for (const float score : found.scores) line["scores"].push_back(six_decimals(score));
  line["milliseconds"] = six_decimals(milliseconds);
  // A file name need not be UTF-8, JSON must be.
  return line.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace wsfast
