#include "image_file.h"

#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <string>
#include <string_view>

namespace wsfast {
namespace {

std::string read_bytes(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw UnreadableFile(std::strerror(errno));
  std::string data;
  try {
    data.assign(std::istreambuf_iterator<char>(file), {});
  } catch (const std::ios_base::failure&) {  // the buffer throws, whatever the stream is set to
    throw UnreadableFile(std::strerror(errno));
  }
  if (data.empty()) throw UnreadableFile("empty file");
  if (data.size() > std::numeric_limits<int>::max()) throw UnreadableFile("file is too large");
  return data;
}

// Where a JPEG's scan begins. Segment by segment: an EXIF thumbnail in one of them brings markers of
// its own, and so may what follows the picture (a phone's video).
std::size_t first_scan(const std::string& data) {
  const auto byte = [&](std::size_t at) { return static_cast<unsigned char>(data[at]); };
  for (std::size_t at = 2; at + 3 < data.size() && byte(at) == 0xff;) {
    if (byte(at + 1) == 0xda) return at;
    at += byte(at + 1) == 0xff ? 1 : 2 + (byte(at + 2) << 8 | byte(at + 3));
  }
  return data.rfind("\xff\xda");  // stray bytes between segments
}

// Whether a JPEG or PNG ends before its end marker; some decoders fill the rest with grey.
bool is_cut_short(const std::string& data) {
  if (data.starts_with("\xff\xd8")) {
    const std::size_t scan = first_scan(data);
    return scan == std::string::npos || data.find("\xff\xd9", scan) == std::string::npos;
  }
  return data.starts_with("\x89PNG") && data.find("IEND") == std::string::npos;
}

// Whether a TIFF's first picture has 0 for white, as X-ray detectors write them.
bool counts_from_white(const std::string& data) {
  using namespace std::string_view_literals;
  const bool little = data.starts_with("II*\0"sv) || data.starts_with("II+\0"sv);
  if (!little && !data.starts_with("MM\0*"sv) && !data.starts_with("MM\0+"sv)) return false;
  const bool big = data[little ? 2 : 3] == '+';  // BigTIFF
  const auto number = [&](std::size_t at, std::size_t bytes) {  // zeros behind the end
    std::size_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      const std::size_t place = at + (little ? bytes - 1 - i : i);
      value = value << 8 | (place < data.size() ? static_cast<unsigned char>(data[place]) : 0);
    }
    return value;
  };
  const std::size_t word = big ? 8 : 4, size = big ? 20 : 12;
  const std::size_t table = number(word, word), first = table + (big ? 8 : 2);
  const std::size_t count = number(table, big ? 8 : 2);
  for (std::size_t i = 0; i < count && first + size * i < data.size(); ++i) {
    const std::size_t entry = first + size * i;
    if (number(entry, 2) != 262) continue;  // PhotometricInterpretation
    const std::size_t type = number(entry + 2, 2);
    return number(entry + size - word, type == 1 ? 1 : type == 3 ? 2 : 4) == 0;
  }
  return false;
}

cv::Mat decode(std::string& data) {
  const cv::Mat bytes(1, static_cast<int>(data.size()), CV_8UC1, data.data());
  cv::Mat image;
  try {
    image = cv::imdecode(bytes, cv::IMREAD_ANYCOLOR | cv::IMREAD_ANYDEPTH);
  } catch (const cv::Exception&) {
  }
  if (image.empty()) throw UnreadableFile("not an image or damaged");
  // OpenCV itself turns samples of 8 bits, but not of more.
  if (image.depth() == CV_16U && counts_from_white(data)) cv::bitwise_not(image, image);
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
      // Half-open, in the image's own type; -0.0 counts as 0.
      if (!cv::checkRange(image, true, nullptr, -0.0, std::nextafter(1.0F, 2.0F))) {
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
