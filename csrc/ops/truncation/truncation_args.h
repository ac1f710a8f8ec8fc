// What both backends of the truncation room check of their arguments.
#pragma once

#include "../../core/torch_api.h"

namespace wsfast::truncation {

// Outside of it, or NaN, the selection would look for a rank that no value has. The front door
// raises first.
inline void check_percentile(const char* op, double percentile) {
  WS_CHECK(percentile >= 0.0 && percentile <= 100.0, "wsfast::", op,
           ": percentile must be between 0 and 100, got ", percentile);
}

}  // namespace wsfast::truncation
