// JSON lines to standard output or to a file that appears only when it is whole.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>

namespace wsfast {

class LineWriter {
 public:
  // An empty path is standard output; otherwise `.NAME.PID.partial` is written beside the target,
  // or beside what a link leads to. What is no file, such as /dev/null or a FIFO, is written into.
  explicit LineWriter(const std::filesystem::path& target);
  // Without finish() the lines of all flushes stay in the partial file, and a message says where.
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;

  // Throws InputError when the disk is full.
  void write(const std::string& line);
  // Hands all lines so far to the system, so that a killed process loses none.
  void flush();
  // Flushes and gives the file its name.
  void finish();

 private:
  [[noreturn]] void fail(const std::string& what, int error) const;

  std::filesystem::path target_, partial_;
  std::FILE* file_ = nullptr;
  std::uintmax_t flushed_ = 0;  // bytes
};

}  // namespace wsfast
