#include <chrono>
#include <csignal>
#include <cstdio>
#include <system_error>

#include "libraries.h"
#include "model.h"
#include "output.h"
#include "preprocess.h"
#include "run.h"
#include "source.h"
#include "text.h"

namespace wsfast {
namespace {

volatile std::sig_atomic_t interrupted = 0;

// The first signal ends the run after the current batch, a second one at once.
void end_gracefully(int signal) {
  interrupted = 1;
  std::signal(signal, SIG_DFL);
}

// Throws InputError where the lines would replace a file that is read.
void check_inputs_kept(const std::vector<std::filesystem::path>& files,
                       const std::filesystem::path& out) {
  std::error_code ignored;  // such as of a file that is not there yet
  for (const auto& file : files) {
    if (std::filesystem::equivalent(file, out, ignored)) {
      throw InputError("--out must be another file than those that are read, got " + out.string());
    }
  }
}

std::vector<Frame> next_batch(FrameSource& source, int size) {
  std::vector<Frame> frames;
  while (static_cast<int>(frames.size()) < size && !interrupted) {
    auto frame = source.next();
    if (!frame) break;
    frames.push_back(std::move(*frame));
  }
  return frames;
}

void localize_batch(Model& model, const std::vector<Frame>& frames, LineWriter& writer) {
  std::vector<cv::Mat> images;
  for (const Frame& frame : frames) images.push_back(frame.image);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::uint8_t> batch = to_batch(images, model.info());
  const auto found = model.run(batch, static_cast<std::int64_t>(frames.size()));
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;

  const Size output{model.info().output_width, model.info().output_height};
  for (std::size_t i = 0; i < frames.size(); ++i) {
    writer.write(json_line(found[i], frames[i].origin, output, model.info().class_names,
                           took.count() / static_cast<double>(frames.size())));
  }
  writer.flush();
}

}  // namespace

int localize(const Arguments& arguments) {
  auto files = expand_inputs(arguments.inputs);
  check_inputs_kept(files, arguments.out);
  FrameSource source(std::move(files));
  open_libraries(arguments.operators, arguments.device != "cpu");
  use_threads(arguments.threads);
  Model model(arguments.model, arguments.device);
  LineWriter writer(arguments.out);
  std::signal(SIGINT, end_gracefully);
  std::signal(SIGTERM, end_gracefully);

  std::size_t done = 0;
  for (;;) {
    const auto frames = next_batch(source, arguments.batch);
    if (frames.empty()) break;
    localize_batch(model, frames, writer);
    done += frames.size();
  }
  writer.finish();
  const std::int64_t failed = source.skipped() + source.broken_videos();
  std::fprintf(stderr, "wsfast_infer: %zu images localized, %lld files skipped or broken%s\n", done,
               static_cast<long long>(failed), interrupted ? ", interrupted" : "");
  if (interrupted) return 130;
  return done == 0 || source.broken_videos() > 0 ? 2 : 0;
}

}  // namespace wsfast
