#include "output.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <system_error>

#include "text.h"

namespace wsfast {

LineWriter::LineWriter(const std::filesystem::path& target) : target_(target) {
  if (target.empty()) {
    file_ = stdout;
    return;
  }
  std::error_code ignored;
  if (std::filesystem::is_directory(target, ignored)) {
    throw InputError("--out must be a file, got the folder " + target.string());
  }
  partial_ = target;
  partial_.replace_filename(".");
  partial_ += target.filename();
  partial_ += ".";
  partial_ += std::to_string(::getpid());
  partial_ += ".partial";
  file_ = std::fopen(partial_.c_str(), "wb");
  if (file_ == nullptr) fail("cannot be written");
}

LineWriter::~LineWriter() {
  if (partial_.empty()) return;
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
    fail("cannot be written");
  }
}

void LineWriter::flush() {
  if (std::fflush(file_) != 0) fail("cannot be written");
  if (!partial_.empty()) flushed_ = static_cast<std::uintmax_t>(::ftello(file_));
}

void LineWriter::finish() {
  flush();
  if (target_.empty()) return;
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0) fail("cannot be written");
  std::error_code error;
  std::filesystem::rename(partial_, target_, error);
  if (error) throw InputError("--out " + target_.string() + ": " + error.message());
  partial_.clear();
}

void LineWriter::fail(const std::string& what) const {
  const std::string name = target_.empty() ? "standard output" : "--out " + target_.string();
  throw InputError(name + " " + what + ": " + std::strerror(errno));
}

}  // namespace wsfast
