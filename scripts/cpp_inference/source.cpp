#include "source.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <opencv2/imgproc.hpp>
#include <set>
#include <string>

#include "image_file.h"
#include "text.h"

namespace wsfast {
namespace {

namespace fs = std::filesystem;

bool has_suffix(const fs::path& file, const std::set<std::string>& suffixes) {
  std::string suffix = file.extension().string();
  std::ranges::transform(suffix, suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffixes.contains(suffix);
}

bool is_image(const fs::path& file) {
  return has_suffix(file, {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"});
}

bool is_video(const fs::path& file) {
  return has_suffix(file, {".mp4", ".avi", ".mov", ".mkv", ".webm", ".mjpg"});
}

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

std::vector<fs::path> files_of_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  const auto quietly = fs::directory_options::skip_permission_denied;
  for (auto at = fs::recursive_directory_iterator(folder, quietly); at != fs::end(at); ++at) {
    if (is_hidden(at->path())) {
      at.disable_recursion_pending();
    } else if (at->is_regular_file() && (is_image(at->path()) || is_video(at->path()))) {
      files.push_back(at->path());
    }
  }
  std::ranges::sort(files);
  return files;
}

Frame still_image(const fs::path& file) {
  Frame frame;
  frame.image = read_image(file);
  frame.origin = {file.string(), -1, {frame.image.cols, frame.image.rows}};
  return frame;
}

}  // namespace

std::vector<fs::path> expand_inputs(const std::vector<fs::path>& inputs) {
  std::vector<fs::path> files;
  for (const fs::path& input : inputs) {
    if (!fs::exists(input)) throw InputError(input.string() + ": no such file or folder");
    if (!fs::is_directory(input)) {
      files.push_back(input);
      continue;
    }
    const auto found = files_of_folder(input);
    if (found.empty()) throw InputError(input.string() + ": no image or video in this folder");
    files.insert(files.end(), found.begin(), found.end());
  }
  return files;
}

FrameSource::FrameSource(std::vector<fs::path> files) : files_(std::move(files)) {}

std::optional<Frame> FrameSource::next() {
  while (position_ < files_.size()) {
    if (video_.isOpened()) {
      if (auto frame = next_video_frame()) return frame;
      end_video();
      continue;
    }
    if (is_video(files_[position_])) {
      open_video();
      continue;
    }
    const fs::path& file = files_[position_];
    try {
      Frame frame = still_image(file);
      ++position_;
      return frame;
    } catch (const UnreadableFile& error) {
      report(error.what());
      ++skipped_;
      ++position_;
    }
  }
  return std::nullopt;
}

void FrameSource::open_video() {
  frames_read_ = 0;
  if (video_.open(files_[position_].string())) return;
  report("not a video or damaged");
  ++broken_videos_;
  ++position_;
}

std::optional<Frame> FrameSource::next_video_frame() {
  cv::Mat bgr;
  if (!video_.read(bgr) || bgr.empty()) return std::nullopt;
  Frame frame{{files_[position_].string(), frames_read_++, {bgr.cols, bgr.rows}}, {}};
  cv::cvtColor(bgr, frame.image, cv::COLOR_BGR2RGB);
  return frame;
}

void FrameSource::end_video() {
  // Containers without an index announce an estimate, so a little less is no damage.
  const auto announced = static_cast<std::int64_t>(video_.get(cv::CAP_PROP_FRAME_COUNT));
  const std::int64_t tolerated = std::max<std::int64_t>(1, announced / 100);
  video_.release();
  if (frames_read_ == 0 || frames_read_ + tolerated < announced) {
    const std::string found = std::to_string(frames_read_) + " of " + std::to_string(announced);
    report(("broken video, " + found + " frames could be read").c_str());
    ++broken_videos_;
  }
  ++position_;
}

void FrameSource::report(const char* what) const {
  std::fprintf(stderr, "wsfast_infer: %s: %s\n", files_[position_].c_str(), what);
}

}  // namespace wsfast
