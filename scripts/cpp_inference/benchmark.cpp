#include <chrono>
#include <opencv2/core.hpp>

#include "libraries.h"
#include "model.h"
#include "output.h"
#include "preprocess.h"
#include "run.h"
#include "source.h"
#include "statistics.h"
#include "text.h"

namespace wsfast {
namespace {

constexpr int kWarmUp = 10;  // TorchScript compiles itself in its first runs

cv::Mat noise(const ExportInfo& info) {
  cv::Mat image(info.image_height, info.image_width, CV_8UC3);
  cv::RNG(0).fill(image, cv::RNG::UNIFORM, 0, 256);
  return image;
}

// As many images as a batch has, from the inputs' beginning and again where they are too few.
std::vector<cv::Mat> batch_images(const Arguments& arguments, const ExportInfo& info) {
  std::vector<cv::Mat> images;
  const auto size = static_cast<std::size_t>(arguments.batch);
  if (arguments.inputs.empty()) return std::vector<cv::Mat>(size, noise(info));
  FrameSource source(expand_inputs(arguments.inputs));
  while (images.size() < size) {
    auto frame = source.next();
    if (!frame) break;
    images.push_back(frame->image);
  }
  if (images.empty()) throw InputError("none of the inputs could be read");
  for (std::size_t i = 0; images.size() < size; ++i) images.push_back(images[i]);
  return images;
}

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

void timed_run(Model& model, const std::vector<cv::Mat>& images, Benchmark& result) {
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::uint8_t> batch = to_batch(images, model.info());
  const auto prepared = std::chrono::steady_clock::now();
  model.run(batch, static_cast<std::int64_t>(images.size()));
  result.net.push_back(milliseconds_since(prepared));
  result.total.push_back(milliseconds_since(start));
}

}  // namespace

int benchmark(const Arguments& arguments) {
  open_libraries(arguments.operators, arguments.device != "cpu");
  const int threads = use_threads(arguments.threads);
  Model model(arguments.model, arguments.device);
  LineWriter writer(arguments.out);
  const auto images = batch_images(arguments, model.info());

  Benchmark warm_up, result{arguments.model.string(), arguments.device, arguments.batch, threads,
                            kWarmUp, {}, {}};
  for (int i = 0; i < kWarmUp; ++i) timed_run(model, images, warm_up);
  for (int i = 0; i < arguments.bench; ++i) timed_run(model, images, result);
  writer.write(json_line(result));
  writer.finish();
  return 0;
}

}  // namespace wsfast
