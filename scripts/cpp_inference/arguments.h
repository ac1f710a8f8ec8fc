// What the user asked for on the command line.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace wsfast {

struct Arguments {
  std::filesystem::path model;
  std::vector<std::filesystem::path> inputs;     // image and video files, folders
  std::vector<std::filesystem::path> operators;  // libraries with the model's operators
  std::filesystem::path out;                     // empty: standard output
  std::string device = "cpu";
  int batch = 1;    // images per run of the model
  int threads = 0;  // 0: torch's own choice
  int bench = 0;    // timed runs, 0: no benchmark
  bool help = false;
};

// Reads the arguments after the program's name; throws InputError at the first that is wrong.
Arguments parse_arguments(const std::vector<std::string>& words);

// What --help prints.
std::string help_text();

}  // namespace wsfast
