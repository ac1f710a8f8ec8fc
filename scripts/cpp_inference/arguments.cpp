#include "arguments.h"

#include <charconv>
#include <functional>
#include <map>

#include "text.h"

namespace wsfast {
namespace {

constexpr int kLargest = 1'000'000;

int whole_number(const std::string& option, const std::string& text) {
  int value = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc() || stop != end || value < 1 || value > kLargest) {
    throw InputError(option + " must be a whole number of at least 1, got '" + text + "'");
  }
  return value;
}

std::string device_name(const std::string& text) {
  const bool numbered = text.starts_with("cuda:") && text.size() > 5 && text.size() < 8 &&
                        text.find_first_not_of("0123456789", 5) == std::string::npos;
  if (text != "cpu" && text != "cuda" && !numbered) {
    throw InputError("--device must be cpu, cuda or cuda:N, got '" + text + "'");
  }
  return text;
}

using Setter = std::function<void(Arguments&, const std::string&)>;

const std::map<std::string, Setter>& options() {
  static const std::map<std::string, Setter> setters = {
      {"--model", [](Arguments& a, const std::string& v) { a.model = v; }},
      {"--ops", [](Arguments& a, const std::string& v) { a.operators.emplace_back(v); }},
      {"--out", [](Arguments& a, const std::string& v) { a.out = v; }},
      {"--device", [](Arguments& a, const std::string& v) { a.device = device_name(v); }},
      {"--batch", [](Arguments& a, const std::string& v) { a.batch = whole_number("--batch", v); }},
      {"--threads",
       [](Arguments& a, const std::string& v) { a.threads = whole_number("--threads", v); }},
      {"--bench", [](Arguments& a, const std::string& v) { a.bench = whole_number("--bench", v); }},
  };
  return setters;
}

void check(const Arguments& arguments) {
  if (arguments.model.empty()) {
    throw InputError("--model must be given: a .pt2 or TorchScript file (--help shows examples)");
  }
  if (arguments.inputs.empty() && arguments.bench == 0) {
    throw InputError("an image, folder or video must be given (--help shows examples)");
  }
}

}  // namespace

Arguments parse_arguments(const std::vector<std::string>& words) {
  Arguments arguments;
  for (std::size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word == "--help" || word == "-h") {
      arguments.help = true;
      return arguments;
    }
    if (word.size() < 2 || word[0] != '-') {
      arguments.inputs.emplace_back(word);
      continue;
    }
    const auto equals = word.find('=');
    const std::string name = word.substr(0, equals);
    const auto option = options().find(name);
    if (option == options().end()) {
      throw InputError("no such option: " + name + " (--help lists them)");
    }
    if (equals == std::string::npos && i + 1 == words.size()) {
      throw InputError(name + " must be followed by a value");
    }
    option->second(arguments, equals == std::string::npos ? words[++i] : word.substr(equals + 1));
  }
  check(arguments);
  return arguments;
}

std::string help_text() {
  return R"help(usage: wsfast_infer --model FILE --ops LIBRARY [options] IMAGE|FOLDER|VIDEO...

Runs a model of `wsfast export` without Python and prints one JSON line per image or video frame:
predicted class, boxes, scores and the time it took.

  --model FILE       an AOTInductor package (.pt2) or a TorchScript file
  --ops LIBRARY      wsfast's compiled operators, once per file; `wsfast info --libs` prints them
  --device DEVICE    cpu, cuda or cuda:N (default: cpu); a .pt2 runs only where it was made for
  --batch N          images per run of the model (default: 1)
  --threads N        CPU threads (default: torch's choice, one per core)
  --out FILE         write the lines to FILE, which appears when all are written
  --bench N          instead of results, time N runs on the first images (after 10 that do not
                     count) and print p50, p95 and p99 milliseconds and frames per second as one
                     JSON line; without images, noise is used
  -h, --help         this text

A line holds: file; frame (videos: its number, from 0); width, height of the image; class,
class_name, probability; count (components found, which may exceed the boxes kept); boxes as
[x0, y0, x1, y1] in the image's own pixels, half-open (x1 and y1 lie just outside); scores, the mean
of the heat map in each component (0-1); milliseconds per image, from the decoded image to boxes.
Where the class scores are not finite, class, class_name and probability are null.
Images are resized to the size that the model was exported for, boxes back to the enclosing pixels.

A file that cannot be read is reported, counted and skipped. Exit code: 0, or 2 for bad input with
one line that says what is wrong, or 130 after Ctrl-C, when what was read so far is written.

examples:
  wsfast_infer --model part.pt2 --ops "$(wsfast info --libs | head -n 1)" photos/
  wsfast_infer --model part.ts --ops .../wsfast/_C.so clip.mp4 --batch 8 --out clip.jsonl
  wsfast_infer --model part.pt2 --ops .../wsfast/_C.so --bench 200 --threads 2
)help";
}

}  // namespace wsfast
