#include "text.h"

namespace wsfast {
namespace {

constexpr std::string_view kBlank = " \t\r\n";

std::string trimmed(std::string_view line) {
  const auto begin = line.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return std::string(line.substr(begin, line.find_last_not_of(kBlank) - begin + 1));
}

}  // namespace

std::string first_line(std::string_view text) {
  const auto begin = text.find_first_not_of(kBlank);
  if (begin == std::string_view::npos) return {};
  return trimmed(text.substr(begin, text.find('\n', begin) - begin));
}

std::string last_line(std::string_view text) {
  const auto end = text.find_last_not_of(kBlank);
  if (end == std::string_view::npos) return {};
  const auto newline = text.rfind('\n', end);
  return trimmed(text.substr(newline == std::string_view::npos ? 0 : newline, end + 1 - newline));
}

}  // namespace wsfast
