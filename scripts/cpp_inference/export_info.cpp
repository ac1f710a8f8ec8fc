#include "export_info.h"

#include <cstdint>
#include <nlohmann/json.hpp>

#include "text.h"

namespace wsfast {
namespace {

using nlohmann::json;

constexpr int kLargestSide = 1 << 16;
constexpr std::int64_t kMostPixels = 1 << 30;  // of an image, as OpenCV reads them

const json& entry(const json& object, const std::string& key) {
  const auto found = object.find(key);
  if (found == object.end()) {
    throw InputError("has no metadata of `wsfast export` (" + key + " is missing)");
  }
  return *found;
}

// A value that may have been written as text.
json value(const json& object, const std::string& key) {
  const json& found = entry(object, key);
  if (!found.is_string()) return found;
  json parsed = json::parse(found.get<std::string>(), nullptr, /*allow_exceptions=*/false);
  if (parsed.is_discarded()) throw InputError("has damaged metadata (" + key + ")");
  return parsed;
}

int whole(const json& object, const std::string& key, int largest) {
  const json number = value(object, key);
  if (!number.is_number_integer() || number < 1 || number > largest) {
    throw InputError("has damaged metadata (" + key + ")");
  }
  return number.get<int>();
}

std::vector<std::string> names(const json& object) {
  const json list = value(object, "class_names");
  std::vector<std::string> result;
  if (list.is_null()) return result;
  if (!list.is_array()) throw InputError("has damaged metadata (class_names)");
  for (const json& name : list) {
    if (!name.is_string()) throw InputError("has damaged metadata (class_names)");
    result.push_back(name.get<std::string>());
  }
  return result;
}

ExportInfo from_object(const json& object) {
  ExportInfo info;
  info.image_height = whole(object, "image_height", kLargestSide);
  info.image_width = whole(object, "image_width", kLargestSide);
  if (std::int64_t{info.image_height} * info.image_width > kMostPixels) {
    throw InputError("has damaged metadata (image_height, image_width)");
  }
  info.output_height = whole(object, "output_height", kLargestSide);
  info.output_width = whole(object, "output_width", kLargestSide);
  info.channels = whole(object, "channels", 3);
  info.class_names = names(object);
  if (info.channels == 2) throw InputError("has damaged metadata (channels)");
  return info;
}

}  // namespace

ExportInfo read_export_info(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  return from_object(object.is_object() ? object : json::object());
}

ExportInfo read_export_info(const std::unordered_map<std::string, std::string>& metadata) {
  return from_object(json(metadata));
}

}  // namespace wsfast
