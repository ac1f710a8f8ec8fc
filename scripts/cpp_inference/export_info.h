// What `wsfast export` wrote about the program into its file.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

namespace wsfast {

struct ExportInfo {
  int image_height = 0;  // the size of the images that the program takes
  int image_width = 0;
  int output_height = 0;  // the size whose pixels its boxes count
  int output_width = 0;
  int channels = 0;                      // 3: RGB, 1: grey
  std::vector<std::string> class_names;  // may be empty
};

// From TorchScript's wsfast.json; throws InputError where something is missing.
ExportInfo read_export_info(const std::string& json);

// From AOTInductor's metadata, whose values are strings.
ExportInfo read_export_info(const std::unordered_map<std::string, std::string>& metadata);

}  // namespace wsfast
