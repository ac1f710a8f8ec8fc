// Shared libraries that are opened while the program runs.
#pragma once

#include <filesystem>
#include <vector>

namespace wsfast {

// Opens libraries whose operators register themselves with torch, first torch's own CUDA part if
// `cuda`. Throws InputError where one cannot be opened.
void open_libraries(const std::vector<std::filesystem::path>& operators, bool cuda);

}  // namespace wsfast
