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
  if (std::filesystem::is_directory(target)) {
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
  if (file_ == nullptr || target_.empty()) return;
  std::fclose(file_);
  if (wrote_) {
    std::fprintf(stderr, "wsfast_infer: the lines so far are in %s\n", partial_.c_str());
  } else {
    std::error_code ignored;
    std::filesystem::remove(partial_, ignored);
  }
}

void LineWriter::write(const std::string& line) {
  wrote_ = true;
  if (std::fwrite(line.data(), 1, line.size(), file_) != line.size() ||
      std::fputc('\n', file_) == EOF) {
    fail("cannot be written");
  }
}

void LineWriter::flush() {
  if (std::fflush(file_) != 0) fail("cannot be written");
}

void LineWriter::finish() {
  flush();
  if (target_.empty()) return;
  std::FILE* file = file_;
  file_ = nullptr;
  if (std::fclose(file) != 0) fail("cannot be written");
  std::error_code error;
  std::filesystem::rename(partial_, target_, error);
  if (error) throw InputError("--out: " + target_.string() + ": " + error.message());
}

void LineWriter::fail(const std::string& what) const {
  const std::string name = target_.empty() ? "standard output" : "--out " + target_.string();
  throw InputError(name + " " + what + ": " + std::strerror(errno));
}

}  // namespace wsfast
