// The words of a command line: `--name value` pairs, and arguments without a name.
#pragma once

#include <map>
#include <string>
#include <vector>

namespace mobilemoe {

class Options {
 public:
  // Throws Error(usage) for an option that is not among `known` or has no value, and for another number of arguments
  // than `arguments` names.
  Options(const std::vector<std::string>& words, const std::vector<std::string>& arguments,
          const std::vector<std::string>& known);

  const std::string& argument(size_t i) const { return arguments_[i]; }
  std::string text(const std::string& name, const std::string& fallback) const;
  int number(const std::string& name, int fallback, int least) const;  // throws Error(usage)

 private:
  std::vector<std::string> arguments_;
  std::map<std::string, std::string> values_;
};

// Throws Error(usage) that names `name` unless the text is a whole number of at least `least`.
int parse_number(const std::string& text, const std::string& name, int least);

}  // namespace mobilemoe
