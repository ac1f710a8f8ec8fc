// The pictures a user points at, as one stream of frames.
#pragma once

#include <cstdint>
#include <filesystem>
#include <opencv2/core.hpp>
#include <opencv2/videoio.hpp>
#include <optional>
#include <vector>

#include "localization.h"

namespace wsfast {

struct Frame {
  Origin origin;
  cv::Mat image;  // 8-bit RGB
};

// The files behind files and folders (searched recursively for known suffixes, sorted by name,
// hidden ones left out). Throws InputError where an input is missing or holds no image or video.
std::vector<std::filesystem::path> expand_inputs(const std::vector<std::filesystem::path>& inputs);

class FrameSource {
 public:
  explicit FrameSource(std::vector<std::filesystem::path> files);

  // The next image or video frame, nothing at the end. A file that cannot be read is reported on
  // standard error, counted and skipped.
  std::optional<Frame> next();

  std::int64_t skipped() const { return skipped_; }
  // Videos that could not be opened, or ended well before their last announced frame.
  std::int64_t broken_videos() const { return broken_videos_; }

 private:
  std::optional<Frame> next_video_frame();
  void open_video();
  void end_video();
  void report(const char* what) const;

  std::vector<std::filesystem::path> files_;
  std::size_t position_ = 0;  // in files_
  cv::VideoCapture video_;
  std::int64_t frames_read_ = 0;  // of the open video
  double seconds_ = 0;            // time of its latest frame
  std::int64_t skipped_ = 0;
  std::int64_t broken_videos_ = 0;
};

}  // namespace wsfast
