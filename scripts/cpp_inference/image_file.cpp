#include "image_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>

namespace wsfast {
namespace {

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UnreadableFile(std::strerror(errno));
  std::string data{std::istreambuf_iterator<char>(file), {}};
  if (file.bad()) throw UnreadableFile("cannot be read");
  if (data.empty()) throw UnreadableFile("empty file");
  if (data.size() > std::numeric_limits<int>::max()) throw UnreadableFile("file is too large");
  return data;
}

// Whether a JPEG or PNG ends before its end marker; some decoders fill the rest with grey.
bool is_cut_short(const std::string& data) {
  if (data.starts_with("\xff\xd8")) {
    // An EXIF thumbnail brings an end marker too, but before the main scan starts.
    const auto end = data.rfind("\xff\xd9"), scan = data.rfind("\xff\xda");
    return end == std::string::npos || (scan != std::string::npos && end < scan);
  }
  return data.starts_with("\x89PNG") && data.find("IEND") == std::string::npos;
}

cv::Mat decode(std::string& data) {
  const cv::Mat bytes(1, static_cast<int>(data.size()), CV_8UC1, data.data());
  cv::Mat image;
  try {
    image = cv::imdecode(bytes, cv::IMREAD_ANYCOLOR | cv::IMREAD_ANYDEPTH);
  } catch (const cv::Exception&) {
  }
  if (image.empty()) throw UnreadableFile("not an image or damaged");
  return image;
}

cv::Mat to_8_bit(const cv::Mat& image) {
  cv::Mat result;
  switch (image.depth()) {
    case CV_8U:
      return image;
    case CV_16U:
      image.convertTo(result, CV_8U, 1.0 / 257);
      return result;
    case CV_32F:
    case CV_64F:
      if (!cv::checkRange(image, true, nullptr, 0.0, 1.0 + 1e-12)) {
        throw UnreadableFile("float samples outside 0-1");
      }
      image.convertTo(result, CV_8U, 255.0);
      return result;
    default:
      throw UnreadableFile("samples of an unusual type");
  }
}

}  // namespace

cv::Mat read_image(const std::filesystem::path& path) {
  std::string data = read_bytes(path);
  if (is_cut_short(data)) throw UnreadableFile("file is cut short");
  const cv::Mat image = to_8_bit(decode(data));
  cv::Mat rgb;
  cv::cvtColor(image, rgb, image.channels() == 1 ? cv::COLOR_GRAY2RGB : cv::COLOR_BGR2RGB);
  return rgb;
}

}  // namespace wsfast
