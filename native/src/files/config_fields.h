// Reads the fields of one JSON object of a config.json. A field with an impossible value throws one sentence about it.
#pragma once

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

#include "files/json.h"

namespace mobilemoe::config_fields {

constexpr int64_t kLargest = 1 << 24;  // of every size

[[noreturn]] inline void fail(const std::string& what) { throw Error(ErrorCode::config, what); }

inline std::string show(const Json& value) {
  if (value.text() != nullptr) return shorten(*value.text());
  constexpr size_t kLongest = 60;
  std::string out(value.source.substr(0, kLongest));
  std::replace_if(out.begin(), out.end(), [](char c) { return c < ' '; }, ' ');
  return value.source.size() > kLongest ? out + "..." : out;
}

// The fields of one object. A null field counts as missing unless said otherwise.
class Fields {
 public:
  Fields(const Json& object, std::string prefix) : object_(object), prefix_(std::move(prefix)) {
    if (object.members() == nullptr) {
      fail((prefix_.empty() ? "the config" : prefix_.substr(0, prefix_.size() - 1)) + " is " + show(object) +
           ", not an object");
    }
  }

  const Json* get(const char* name) const {
    const Json* value = object_.find(name);
    return value == nullptr || value->is_null() ? nullptr : value;
  }

  const Json& need(const char* name) const {
    const Json* value = object_.find(name);
    if (value == nullptr) fail(prefix_ + name + " is missing");
    return *value;
  }

  [[noreturn]] void refuse(const char* name, const std::string& rule) const {
    fail(prefix_ + name + " is " + show(*object_.find(name)) + rule);
  }

  // Whether the field holds a whole number within lowest .. 2^24; `out` keeps its default where the field is missing.
  void size(const char* name, int lowest, int& out) const {
    const Json* value = object_.find(name);
    if (value == nullptr) return;
    const int64_t* number = value->integer();
    if (number == nullptr) refuse(name, ", not a whole number");
    if (*number < lowest || *number > kLargest) {
      refuse(name, ", but must be within " + std::to_string(lowest) + " and " + std::to_string(kLargest));
    }
    out = static_cast<int>(*number);
  }

  void required_size(const char* name, int& out) const {
    need(name);
    size(name, 1, out);
  }

  void number(const char* name, double& out) const {
    const Json* value = object_.find(name);
    if (value == nullptr) return;
    const std::optional<double> number = value->number();
    if (!number) refuse(name, ", not a number");
    if (!std::isfinite(*number)) refuse(name, ", not a finite number");
    out = *number;
  }

  void positive(const char* name, double& out) const {
    number(name, out);
    if (out <= 0) refuse(name, ", but must be positive");
  }

  void flag(const char* name, bool& out) const {
    const Json* value = object_.find(name);
    if (value == nullptr) return;
    if (value->boolean() == nullptr) refuse(name, ", neither true nor false");
    out = *value->boolean();
  }

  // The index of the field's text among `words`; `otherwise` where the field is missing.
  size_t word(const char* name, std::initializer_list<std::string_view> words, size_t otherwise) const {
    const Json* value = object_.find(name);
    if (value == nullptr) return otherwise;
    const auto* found = value->text() == nullptr ? words.end() : std::find(words.begin(), words.end(), *value->text());
    if (found != words.end()) return found - words.begin();
    std::string all;
    for (const std::string_view each : words) all += (all.empty() ? "" : ", ") + std::string(each);
    refuse(name, ", not one of " + all);
  }

  const Json::Items& list(const char* name) const {
    static const Json::Items kNone;
    const Json* value = get(name);
    if (value == nullptr) return kNone;
    if (value->items() == nullptr) refuse(name, ", not a list");
    return *value->items();
  }

  // A field that must have this value if it is there: another value means another model. True and false count as 1 and
  // 0.
  void fixed(const char* name, std::string_view wanted) const {
    const Json* value = object_.find(name);
    if (value == nullptr || (value->text() != nullptr && *value->text() == wanted)) return;
    refuse(name, ", but only \"" + std::string(wanted) + "\" is supported");
  }
  void fixed(const char* name, int wanted) const {
    const Json* value = object_.find(name);
    if (value == nullptr || is_number(*value, wanted)) return;
    refuse(name, ", but only " + std::to_string(wanted) + " is supported");
  }

  static bool is_number(const Json& value, int wanted) {
    const std::optional<double> number = value.boolean() != nullptr ? *value.boolean() : value.number();
    return number && *number == wanted;
  }

 private:
  const Json& object_;
  std::string prefix_;  // "rope_scaling." in messages
};

}  // namespace mobilemoe::config_fields
