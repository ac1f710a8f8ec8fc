// A model of `wsfast export`, without torch's types: 8-bit samples in, localizations out.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "export_info.h"
#include "localization.h"

namespace wsfast {

class Program;

// Uses `threads` CPU threads from now on (0: torch's choice); returns how many there are.
int use_threads(int threads);

class Model {
 public:
  // Throws InputError where the file or the device is of no use.
  Model(const std::filesystem::path& file, const std::string& device);
  ~Model();

  const ExportInfo& info() const;

  // `batch` holds (count, channels, image_height, image_width) samples.
  std::vector<Localization> run(std::vector<std::uint8_t>& batch, std::int64_t count);

 private:
  std::string device_;
  std::unique_ptr<Program> program_;
};

}  // namespace wsfast
