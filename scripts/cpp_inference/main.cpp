// wsfast_infer: a model of `wsfast export` on images and videos, without Python. See README.md.
#include <cstdio>
#include <cstdlib>
#include <opencv2/core/utils/logger.hpp>

#include "run.h"
#include "text.h"

namespace {

// Problems are told once, by this program: OpenCV, FFmpeg and torch keep their own lines.
void silence_libraries() {
  cv::utils::logging::setLogLevel(cv::utils::logging::LOG_LEVEL_SILENT);
  ::setenv("OPENCV_FFMPEG_LOGLEVEL", "-8", /*overwrite=*/0);
  ::setenv("TORCH_CPP_LOG_LEVEL", "ERROR", /*overwrite=*/0);
}

int run(const wsfast::Arguments& arguments) {
  if (arguments.help) {
    std::fputs(wsfast::help_text().c_str(), stdout);
    return 0;
  }
  silence_libraries();
  return arguments.bench > 0 ? wsfast::benchmark(arguments) : wsfast::localize(arguments);
}

}  // namespace

int main(int count, char** words) {
  try {
    return run(wsfast::parse_arguments({words + 1, words + count}));
  } catch (const wsfast::InputError& error) {
    std::fprintf(stderr, "wsfast_infer: error: %s\n", error.what());
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "wsfast_infer: error: %s\n", wsfast::first_line(error.what()).c_str());
    return 1;
  }
}
