// Reading one image file as wsfast.data.read_image does: 8-bit RGB, upright, or a plain reason.
#pragma once

#include <filesystem>
#include <opencv2/core.hpp>
#include <stdexcept>

namespace wsfast {

// A file that cannot be read; what() says why in a few words.
struct UnreadableFile : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// (height, width) 8-bit RGB. 16-bit samples are scaled from their full range, float ones from 0-1,
// grey is repeated, alpha dropped, EXIF orientation applied. Throws UnreadableFile.
cv::Mat read_image(const std::filesystem::path& path);

}  // namespace wsfast
