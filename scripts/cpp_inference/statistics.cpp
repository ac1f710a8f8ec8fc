#include "statistics.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numeric>

namespace wsfast {
namespace {

using nlohmann::ordered_json;

double microseconds_kept(double milliseconds) { return std::round(milliseconds * 1e3) / 1e3; }

double sum(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0);
}

ordered_json summary(const std::vector<double>& values) {
  ordered_json object;
  object["mean"] = microseconds_kept(sum(values) / static_cast<double>(values.size()));
  object["min"] = microseconds_kept(*std::min_element(values.begin(), values.end()));
  object["p50"] = microseconds_kept(percentile(values, 50));
  object["p95"] = microseconds_kept(percentile(values, 95));
  object["p99"] = microseconds_kept(percentile(values, 99));
  object["max"] = microseconds_kept(*std::max_element(values.begin(), values.end()));
  return object;
}

}  // namespace

double percentile(std::vector<double> values, double percent) {
  std::sort(values.begin(), values.end());
  const double at = percent / 100 * static_cast<double>(values.size() - 1);
  const auto below = static_cast<std::size_t>(at);
  const auto above = std::min(below + 1, values.size() - 1);
  return std::lerp(values[below], values[above], at - static_cast<double>(below));
}

std::string json_line(const Benchmark& benchmark) {
  const auto runs = static_cast<double>(benchmark.total.size());
  ordered_json line;
  line["model"] = benchmark.model;
  line["device"] = benchmark.device;
  line["threads"] = benchmark.threads;
  line["batch"] = benchmark.batch;
  line["warm_up"] = benchmark.warm_up;
  line["runs"] = benchmark.total.size();
  line["milliseconds"] = summary(benchmark.total);
  line["model_milliseconds"] = summary(benchmark.net);
  line["frames_per_second"] =
      microseconds_kept(1e3 * runs * benchmark.batch / sum(benchmark.total));
  return line.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
}

}  // namespace wsfast
