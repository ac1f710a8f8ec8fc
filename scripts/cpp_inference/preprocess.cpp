#include "preprocess.h"

#include <opencv2/imgproc.hpp>

namespace wsfast {
namespace {

std::size_t area(cv::Size size) { return static_cast<std::size_t>(size.width) * size.height; }

cv::Mat resized(const cv::Mat& image, cv::Size size) {
  if (image.size() == size) return image;
  const bool shrinks = area(size) < image.total();
  cv::Mat result;
  cv::resize(image, result, size, 0, 0, shrinks ? cv::INTER_AREA : cv::INTER_LINEAR);
  return result;
}

// Writes the channels of one image one after the other.
void write_planes(const cv::Mat& rgb, int channels, std::uint8_t* target) {
  const cv::Size size = rgb.size();
  if (channels == 1) {
    cv::Mat grey(size, CV_8UC1, target);
    cv::cvtColor(rgb, grey, cv::COLOR_RGB2GRAY);
    return;
  }
  std::vector<cv::Mat> planes;
  for (int c = 0; c < channels; ++c) {
    planes.emplace_back(size, CV_8UC1, target + static_cast<std::size_t>(c) * area(size));
  }
  cv::split(rgb, planes);
}

}  // namespace

std::vector<std::uint8_t> to_batch(std::span<const cv::Mat> images, const ExportInfo& info) {
  const cv::Size size(info.image_width, info.image_height);
  const std::size_t stride = static_cast<std::size_t>(info.channels) * area(size);
  std::vector<std::uint8_t> batch(images.size() * stride);
  for (std::size_t i = 0; i < images.size(); ++i) {
    write_planes(resized(images[i], size), info.channels, batch.data() + i * stride);
  }
  return batch;
}

}  // namespace wsfast
