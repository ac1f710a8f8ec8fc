#include "source.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdio>
#include <opencv2/imgproc.hpp>
#include <set>
#include <string>
#include <system_error>

#include "image_file.h"
#include "text.h"

namespace wsfast {
namespace {

namespace fs = std::filesystem;

constexpr double kDefaultFps = 25;

bool has_suffix(const fs::path& file, const std::set<std::string>& suffixes) {
  std::string suffix = file.extension().string();
  std::ranges::transform(suffix, suffix.begin(), [](unsigned char c) { return std::tolower(c); });
  return suffixes.contains(suffix);
}

bool is_image(const fs::path& file) {
  return has_suffix(file, {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"});
}

bool is_video(const fs::path& file) {
  return has_suffix(file, {".mp4", ".m4v", ".avi", ".mov", ".mkv", ".webm", ".mjpg", ".mpg", ".mpeg",
                           ".wmv", ".flv", ".3gp", ".mts", ".m2ts"});
}

double frames_per_second(const cv::VideoCapture& video) {
  const double announced = video.get(cv::CAP_PROP_FPS);
  return std::isfinite(announced) && announced > 0 ? announced : kDefaultFps;
}

// Seconds that a video's header may promise too much, as in wsfast.data.VideoFrames: only AVI's is
// a plain count, others are computed from a duration that belongs to the sound as well.
double tolerated_seconds(const fs::path& file) { return has_suffix(file, {".avi"}) ? 0.5 : 2.0; }

// Whether the header counts frames; otherwise the count is computed from the duration and includes
// the frames that a recorder never had.
bool has_known_count(const fs::path& file) { return has_suffix(file, {".avi", ".mp4", ".mov"}); }

bool is_hidden(const fs::path& path) { return path.filename().string().starts_with('.'); }

std::vector<fs::path> files_of_folder(const fs::path& folder) {
  std::vector<fs::path> files;
  const auto quietly = fs::directory_options::skip_permission_denied;
  std::error_code error, ignored;
  auto at = fs::recursive_directory_iterator(folder, quietly, error);
  for (; !error && at != fs::end(at); at.increment(error)) {
    if (is_hidden(at->path())) {
      at.disable_recursion_pending();
    } else if (is_image(at->path()) || is_video(at->path())) {
      // What cannot be looked at, such as a loop of links, is reported when it is to be read.
      const fs::file_status status = at->status(ignored);
      if (fs::is_regular_file(status) || !fs::status_known(status)) files.push_back(at->path());
    }
  }
  if (error) throw InputError(folder.string() + ": " + error.message());
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
    std::error_code error;
    const fs::file_status status = fs::status(input, error);
    if (!fs::exists(status)) {
      const bool missing = status.type() == fs::file_type::not_found;
      throw InputError(input.string() + ": " +
                       (missing ? "no such file or folder" : error.message()));
    }
    if (!fs::is_directory(status)) {
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
  seconds_ = 0;
  // FFmpeg would take what stands before a colon for a protocol.
  if (video_.open(fs::absolute(files_[position_]).string())) return;
  report("not a video or damaged");
  ++broken_videos_;
  ++position_;
}

std::optional<Frame> FrameSource::next_video_frame() {
  cv::Mat bgr;
  if (!video_.read(bgr) || bgr.empty()) return std::nullopt;
  seconds_ = video_.get(cv::CAP_PROP_POS_MSEC) / 1000;
  Frame frame{{files_[position_].string(), frames_read_++, {bgr.cols, bgr.rows}}, {}};
  cv::cvtColor(bgr, frame.image, cv::COLOR_BGR2RGB);
  return frame;
}

void FrameSource::end_video() {
  const fs::path& file = files_[position_];
  const double fps = frames_per_second(video_);
  const auto announced = static_cast<std::int64_t>(video_.get(cv::CAP_PROP_FRAME_COUNT));
  video_.release();
  auto passed = static_cast<double>(frames_read_);
  if (!has_known_count(file)) passed = std::max(passed, std::round(seconds_ * fps) + 1);
  const double absent = static_cast<double>(announced) - passed;
  if (frames_read_ == 0 || absent > fps * tolerated_seconds(file)) {
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
