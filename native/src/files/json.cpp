#include "files/json.h"

#include <algorithm>
#include <clocale>
#include <cmath>
#include <cstdlib>

namespace mobilemoe {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

class Parser {
 public:
  Parser(std::string_view text, const std::string& name, ErrorCode code, int max_depth)
      : text_(text), name_(name), code_(code), depth_left_(max_depth) {}

  Json parse_document() {
    Json value = parse_value();
    skip_blanks();
    if (at_ != text_.size()) fail("something follows its end");
    return value;
  }

 private:
  [[noreturn]] void fail(const char* what) const {
    throw Error(code_, name_ + " is not valid JSON: " + what + " (at byte " + std::to_string(at_) + ")");
  }

  // The next byte, or 0 at the end, where no byte of valid JSON is 0.
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  void skip_blanks() {
    while (at_ < text_.size() && (text_[at_] == ' ' || text_[at_] == '\n' || text_[at_] == '\t' || text_[at_] == '\r'))
      ++at_;
  }

  void expect(char c, const char* fault) {
    skip_blanks();
    if (peek() != c) fail(fault);
    ++at_;
  }

  Json parse_value() {
    skip_blanks();
    if (++values_ > kJsonValues) fail("it holds too many values");
    const size_t begin = at_;
    Json out;
    const char c = peek();
    if (c == '{') {
      out.value = parse_object();
    } else if (c == '[') {
      out.value = parse_array();
    } else if (c == '"') {
      out.value = parse_string();
    } else if (c == '-' || is_digit(c)) {
      parse_number(out);
    } else if (take_word("true")) {
      out.value = true;
    } else if (take_word("false")) {
      out.value = false;
    } else if (!take_word("null")) {
      fail("a value is missing");
    }
    out.source = text_.substr(begin, at_ - begin);
    return out;
  }

  bool take_word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  // Moves past the opening bracket; false if the closing one follows at once.
  bool enter(char closing) {
    if (depth_left_-- == 0) fail("it is nested too deeply");
    ++at_;
    skip_blanks();
    if (peek() != closing) return true;
    ++at_;
    ++depth_left_;
    return false;
  }

  // Moves past a comma and returns true, or past the closing bracket and returns false.
  bool next(char closing) {
    skip_blanks();
    const char c = peek();
    if (c != ',' && c != closing) fail("a comma or a closing bracket is missing");
    ++at_;
    if (c == closing) ++depth_left_;
    return c == ',';
  }

  Json::Items parse_array() {
    Json::Items items;
    if (!enter(']')) return items;
    do items.push_back(parse_value());
    while (next(']'));
    return items;
  }

  Json::Members parse_object() {
    Json::Members members;
    if (!enter('}')) return members;
    do {
      skip_blanks();
      if (peek() != '"') fail("a name is missing");
      std::string name = parse_string();
      expect(':', "a colon is missing");
      members.push_back({std::move(name), parse_value()});
    } while (next('}'));
    std::sort(members.begin(), members.end(), [](const JsonMember& a, const JsonMember& b) {
      const int order = a.name.compare(b.name);
      return order < 0 || (order == 0 && a.value.source.data() < b.value.source.data());
    });
    // Over the reversed range, `unique` keeps the last of equal names.
    const auto first = std::unique(members.rbegin(), members.rend(),
                                   [](const JsonMember& a, const JsonMember& b) { return a.name == b.name; });
    members.erase(members.begin(), first.base());
    return members;
  }

  void parse_number(Json& out) {
    const size_t begin = at_;
    if (peek() == '-') ++at_;
    if (peek() == '0') {
      ++at_;
    } else {
      take_digits();
    }
    bool is_integer = true;
    if (peek() == '.') {
      is_integer = false;
      ++at_;
      take_digits();
    }
    if (peek() == 'e' || peek() == 'E') {
      is_integer = false;
      ++at_;
      if (peek() == '+' || peek() == '-') ++at_;
      take_digits();
    }
    const std::string_view digits = text_.substr(begin, at_ - begin);
    if (is_integer && read_integer(digits, out)) return;
    const double number = read_double(std::string(digits));
    if (!std::isfinite(number)) fail("a number is out of range");
    out.value = number;
  }

  void take_digits() {
    if (!is_digit(peek())) fail("a digit is missing");
    while (is_digit(peek())) ++at_;
  }

  static bool read_integer(std::string_view digits, Json& out) {
    const bool negative = digits[0] == '-';
    if (negative) digits.remove_prefix(1);
    if (digits.size() > 19) return false;  // 19 digits always fit into 64 bits without a sign
    uint64_t number = 0;
    for (const char c : digits) number = number * 10 + static_cast<uint64_t>(c - '0');
    if (number > static_cast<uint64_t>(INT64_MAX)) return false;
    out.value = negative ? -static_cast<int64_t>(number) : static_cast<int64_t>(number);
    return true;
  }

  // Not with a stream: in a process with two copies of the C++ library, one of them linked statically, their locales
  // get mixed up and reading a number crashes. strtod expects the decimal point of the host program's locale.
  static double read_double(std::string digits) {
    const size_t point = digits.find('.');
    if (point != std::string::npos) digits.replace(point, 1, std::localeconv()->decimal_point);
    return std::strtod(digits.c_str(), nullptr);
  }

  std::string parse_string() {
    ++at_;
    std::string out;
    for (;;) {
      if (at_ == text_.size()) fail("a string has no end");
      const auto c = static_cast<unsigned char>(text_[at_]);
      if (c == '"') {
        ++at_;
        return out;
      }
      if (c < 0x20) fail("a string holds a control character");
      if (c == '\\') {
        ++at_;
        parse_escape(out);
      } else if (c < 0x80) {
        out.push_back(text_[at_++]);
      } else {
        take_utf8(out);
      }
    }
  }

  void parse_escape(std::string& out) {
    const char c = peek();
    static constexpr std::string_view kLetters = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    if (c == 'u') {
      ++at_;
      append_utf8(parse_code_point(), out);
      return;
    }
    const size_t which = kLetters.find(c);
    if (which == std::string_view::npos) fail("an escape is unknown");
    out.push_back(kMeanings[which]);
    ++at_;
  }

  uint32_t parse_code_point() {
    const uint32_t high = parse_hex4();
    if (high < 0xD800 || high > 0xDFFF) return high;
    if (high > 0xDBFF || !take_word("\\u")) fail("half of a surrogate pair is missing");
    const uint32_t low = parse_hex4();
    if (low < 0xDC00 || low > 0xDFFF) fail("half of a surrogate pair is missing");
    return 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00);
  }

  uint32_t parse_hex4() {
    uint32_t out = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      static constexpr std::string_view kDigits = "0123456789abcdef0123456789ABCDEF";
      const size_t digit = kDigits.find(peek());
      if (digit == std::string_view::npos) fail("an escape needs four hexadecimal digits");
      out = out << 4 | static_cast<uint32_t>(digit % 16);
    }
    return out;
  }

  static void append_utf8(uint32_t point, std::string& out) {
    const auto put = [&out](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
    if (point < 0x80) {
      put(point);
      return;
    }
    if (point < 0x800) {
      put(0xC0 | point >> 6);
    } else if (point < 0x10000) {
      put(0xE0 | point >> 12);
      put(0x80 | (point >> 6 & 0x3F));
    } else {
      put(0xF0 | point >> 18);
      put(0x80 | (point >> 12 & 0x3F));
      put(0x80 | (point >> 6 & 0x3F));
    }
    put(0x80 | (point & 0x3F));
  }

  // Copies one character of two to four bytes, refusing overlong forms, surrogates and what lies beyond Unicode.
  void take_utf8(std::string& out) {
    const auto lead = static_cast<unsigned char>(text_[at_]);
    const size_t length = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || text_.size() - at_ < length) fail("a string is not UTF-8");
    uint32_t point = lead & (0x7Fu >> length);
    for (size_t i = 1; i < length; ++i) {
      const auto byte = static_cast<unsigned char>(text_[at_ + i]);
      if ((byte & 0xC0) != 0x80) fail("a string is not UTF-8");
      point = point << 6 | (byte & 0x3Fu);
    }
    const bool is_overlong = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
    if (is_overlong || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) fail("a string is not UTF-8");
    out.append(text_.substr(at_, length));
    at_ += length;
  }

  std::string_view text_;
  const std::string& name_;
  ErrorCode code_;
  int depth_left_;
  size_t at_ = 0;
  size_t values_ = 0;
};

}  // namespace

std::optional<double> Json::number() const {
  if (const int64_t* whole = integer()) return static_cast<double>(*whole);
  if (const double* fraction = std::get_if<double>(&value)) return *fraction;
  return std::nullopt;
}

const Json* Json::find(std::string_view name) const {
  const Members* all = members();
  if (all == nullptr) return nullptr;
  const auto found = std::lower_bound(all->begin(), all->end(), name,
                                      [](const JsonMember& member, std::string_view key) { return member.name < key; });
  return found != all->end() && found->name == name ? &found->value : nullptr;
}

Json parse_json(std::string_view text, const std::string& name, ErrorCode code, int max_depth) {
  return Parser(text, name, code, max_depth).parse_document();
}

std::string quote_json(std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20) {
      out += "\\u00";
      out += kHex[byte >> 4];
      out += kHex[byte & 15];
    } else if (c == '"' || c == '\\') {
      out += '\\';
      out += c;
    } else {
      out += byte < 0x80 ? c : '?';
    }
  }
  return out + '"';
}

std::string shorten(std::string_view text) {
  constexpr size_t kLongest = 96;
  std::string out = quote_json(text.substr(0, kLongest));
  if (text.size() > kLongest) out += "...";
  return out;
}

}  // namespace mobilemoe
