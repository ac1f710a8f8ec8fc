// The two things this program does with a model.
#pragma once

#include "arguments.h"

namespace wsfast {

// One JSON line per image; returns the exit code.
int localize(const Arguments& arguments);

// One JSON line of timings; returns the exit code.
int benchmark(const Arguments& arguments);

}  // namespace wsfast
