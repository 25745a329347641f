#include "options.h"

#include <algorithm>
#include <charconv>

#include "error.h"

namespace mobilemoe {

Options::Options(const std::vector<std::string>& words, const std::vector<std::string>& arguments,
                 const std::vector<std::string>& known) {
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    if (word.rfind("--", 0) != 0) {
      arguments_.push_back(word);
      continue;
    }
    if (std::find(known.begin(), known.end(), word) == known.end()) {
      throw Error(ErrorCode::usage, "there is no option " + word + " here: see --help");
    }
    if (i + 1 == words.size()) throw Error(ErrorCode::usage, word + " needs a value");
    values_[word] = words[++i];
  }
  if (arguments_.size() > arguments.size()) {
    throw Error(ErrorCode::usage, "\"" + arguments_[arguments.size()] + "\" is one argument too many: see --help");
  }
  if (arguments_.size() < arguments.size()) {
    throw Error(ErrorCode::usage, arguments[arguments_.size()] + " is missing: see --help");
  }
}

std::string Options::text(const std::string& name, const std::string& fallback) const {
  const auto found = values_.find(name);
  return found == values_.end() ? fallback : found->second;
}

int Options::number(const std::string& name, int fallback, int least) const {
  const auto found = values_.find(name);
  return found == values_.end() ? fallback : parse_number(found->second, name, least);
}

int parse_number(const std::string& text, const std::string& name, int least) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < least) {
    throw Error(ErrorCode::usage,
                name + " is \"" + text + "\", but must be a whole number of at least " + std::to_string(least));
  }
  return value;
}

}  // namespace mobilemoe
