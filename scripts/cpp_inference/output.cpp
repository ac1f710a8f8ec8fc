#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "text.h"

namespace wsfast {

constexpr int kMostLinks = 40;  // Linux' own limit

LineWriter::LineWriter(const std::filesystem::path& target) : target_(target) {
  if (target.empty()) {
    file_ = stdout;
    return;
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(target, ignored)) {
    throw InputError("--out must be a file, got the folder " + target.string());
  }
  if (std::filesystem::exists(target, ignored) &&
      !std::filesystem::is_regular_file(target, ignored)) {  // a device or FIFO
    file_ = std::fopen(target.c_str(), "wb");
    if (file_ == nullptr) fail("cannot be written", errno);
    return;
  }
  // weakly_canonical would leave a link to nothing as it is.
  for (int hops = 0; std::filesystem::is_symlink(target_, ignored); ++hops) {
    if (hops == kMostLinks) fail("cannot be written", ELOOP);
    target_ = target_.parent_path() / std::filesystem::read_symlink(target_, ignored);
  }
  partial_ = target_;
  partial_.replace_filename(".");
  partial_ += target_.filename();
  partial_ += ".";
  partial_ += std::to_string(::getpid());
  partial_ += ".partial";
  file_ = std::fopen(partial_.c_str(), "wb");
  if (file_ == nullptr) fail("cannot be written", errno);
}

LineWriter::~LineWriter() {
  if (partial_.empty()) {
    if (file_ != nullptr && file_ != stdout) std::fclose(file_);
    return;
  }
  if (file_ != nullptr) std::fclose(file_);
  std::error_code ignored;
  if (flushed_ == 0) {
    std::filesystem::remove(partial_, ignored);
    return;
  }
  std::filesystem::resize_file(partial_, flushed_, ignored);  // a full disk leaves half a line
  std::fprintf(stderr, "wsfast_infer: the lines so far are in %s\n", partial_.c_str());
}

void LineWriter::write(const std::string& line) {
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() ||
      std::fputc('\n', file_) == EOF) {
    fail("cannot be written", errno);
  }
}

void LineWriter::flush() {
  if (std::fflush(file_) != 0) fail("cannot be written", errno);
  if (!partial_.empty()) flushed_ = static_cast<std::uintmax_t>(::ftello(file_));
}

void LineWriter::finish() {
  flush();
  if (target_.empty()) return;
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0) fail("cannot be written", errno);
  if (partial_.empty()) return;
  std::error_code error;
  std::filesystem::rename(partial_, target_, error);
  if (error) throw InputError("--out " + target_.string() + ": " + error.message());
  partial_.clear();
}

void LineWriter::fail(const std::string& what, int error) const {
  const std::string name = target_.empty() ? "standard output" : "--out " + target_.string();
  throw InputError(name + " " + what + ": " + std::strerror(error));
}

}  // namespace wsfast
