// From pictures to the one tensor that an exported program takes.
#pragma once

#include <cstdint>
#include <opencv2/core.hpp>
#include <span>
#include <vector>

#include "export_info.h"

namespace wsfast {

// (N, channels, height, width) 8-bit samples of RGB images, resized to the exported size: averaged
// over areas where that shrinks them, bilinear where it grows them, untouched where it is equal.
std::vector<std::uint8_t> to_batch(std::span<const cv::Mat> images, const ExportInfo& info);

}  // namespace wsfast
