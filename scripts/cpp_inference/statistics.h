// What a benchmark reports of its timings.
#pragma once

#include <string>
#include <vector>

namespace wsfast {

// Linear interpolation between the sorted values, as numpy.percentile; `percent` is 0-100.
double percentile(std::vector<double> values, double percent);

struct Benchmark {
  std::string model, device;
  int batch = 0;
  int threads = 0;
  int warm_up = 0;
  std::vector<double> total;  // milliseconds of each run: decoded images to boxes
  std::vector<double> net;    // of that, the model and the way of its results to the host
};

// One line of JSON, without the newline.
std::string json_line(const Benchmark& benchmark);

}  // namespace wsfast
