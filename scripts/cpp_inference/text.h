// Errors that a user can act on, and other people's messages cut to one line.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>

namespace wsfast {

// Bad input: main prints the message as one line and ends with exit code 2.
struct InputError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The first line of a text that is not blank.
std::string first_line(std::string_view text);

// The last line of a text that is not blank: where TorchScript's tracebacks say what went wrong.
std::string last_line(std::string_view text);

}  // namespace wsfast
