// A strict JSON reader (RFC 8259, UTF-8) for headers and configs, which may be hostile.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "error.h"

namespace mobilemoe {

struct JsonMember;

// One value. Each accessor answers null (or nothing) if the value is of another type.
class Json {
 public:
  using Items = std::vector<Json>;
  using Members = std::vector<JsonMember>;  // sorted by name, each name once

  bool is_null() const { return std::holds_alternative<std::monostate>(value); }
  const bool* boolean() const { return std::get_if<bool>(&value); }
  const int64_t* integer() const { return std::get_if<int64_t>(&value); }  // written without a fraction or exponent
  std::optional<double> number() const;                                    // any number
  const std::string* text() const { return std::get_if<std::string>(&value); }
  const Items* items() const { return std::get_if<Items>(&value); }
  const Members* members() const { return std::get_if<Members>(&value); }
  const Json* find(std::string_view name) const;  // the member of an object, or null

  std::variant<std::monostate, bool, int64_t, double, std::string, Items, Members> value;
  std::string_view source;  // the part of the text from which the value was read; the text must still exist
};

struct JsonMember {
  std::string name;
  Json value;
};

constexpr int kJsonDepth = 32;             // arrays and objects inside each other
constexpr size_t kJsonValues = 1'000'000;  // in one text: bounds the memory that a hostile one can take

// Reads one value that fills the whole text; where a name stands twice in an object, the last one holds. Throws
// Error(code) that begins with `name`. The caller limits the size of the text.
Json parse_json(std::string_view text, const std::string& name, ErrorCode code, int max_depth = kJsonDepth);

// The text as a JSON string, quotes included. Bytes beyond ASCII become question marks.
std::string quote_json(std::string_view text);

// The text as it may appear in a message, since it can be anything: quoted, on one line, and cut if it is long.
std::string shorten(std::string_view text);

}  // namespace mobilemoe
