// A test is TEST(name) { ... } with checks in it; the first check that fails ends its test.
#pragma once

#include <cmath>
#include <exception>
#include <sstream>
#include <string>
#include <type_traits>
#include <vector>

#include "error.h"

namespace mobilemoe::check {

struct Test {
  const char* name;
  void (*body)();
};

inline std::vector<Test>& all_tests() {
  static std::vector<Test> tests;
  return tests;
}

struct Registration {
  Registration(const char* name, void (*body)()) { all_tests().push_back({name, body}); }
};

// What a failed check throws. Checks may only be used in the thread that runs the test.
struct Failure {
  std::string what;
};

[[noreturn]] inline void fail(const char* file, int line, const std::string& what) {
  throw Failure{std::string(file) + ":" + std::to_string(line) + ": " + what};
}

template <class T, class = void>
struct IsPrintable : std::false_type {};
template <class T>
struct IsPrintable<T, std::void_t<decltype(std::declval<std::ostream&>() << std::declval<const T&>())>>
    : std::true_type {};

template <class T>
std::string text(const T& value) {
  std::ostringstream out;
  out.precision(9);
  if constexpr (std::is_enum_v<T>) {
    out << static_cast<long long>(value);
  } else if constexpr (std::is_arithmetic_v<T> && sizeof(T) == 1) {
    out << static_cast<int>(value);  // a byte as its number, not as a character
  } else if constexpr (IsPrintable<T>::value) {
    out << value;
  } else {
    out << "(a value that cannot be printed)";
  }
  return out.str();
}

template <class T>
bool is_negative(T value) {
  if constexpr (std::is_signed_v<T>) {
    return value < 0;
  } else {
    return false;
  }
}

template <class A, class B>
bool is_equal(const A& a, const B& b) {
  if constexpr (std::is_integral_v<A> && std::is_integral_v<B>) {
    return is_negative(a) == is_negative(b) && static_cast<unsigned long long>(a) == static_cast<unsigned long long>(b);
  } else {
    return a == b;
  }
}

template <class A, class B>
void equal(const char* file, int line, const char* words, const A& a, const B& b) {
  if (!is_equal(a, b)) fail(file, line, std::string(words) + ": " + text(a) + " is not " + text(b));
}

inline void near(const char* file, int line, const char* words, double a, double b, double tolerance) {
  if (std::fabs(a - b) <= tolerance || a == b) return;  // NaN is never near; infinity is near itself
  fail(file, line, std::string(words) + ": " + text(a) + " and " + text(b) + " differ by " + text(std::fabs(a - b)));
}

// The error's sentence must contain `part`.
template <class Call>
void throws(const char* file, int line, const char* words, ErrorCode code, const std::string& part, const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    if (error.code() != code) {
      fail(file, line, std::string(words) + " threw code " + text(error.code()) + ": " + error.what());
    }
    if (std::string(error.what()).find(part) == std::string::npos) {
      fail(file, line, std::string(words) + " says \"" + error.what() + "\", which does not name \"" + part + "\"");
    }
    return;
  } catch (const std::exception& error) {
    fail(file, line, std::string(words) + " threw something else than an Error: " + error.what());
  }
  fail(file, line, std::string(words) + " threw nothing");
}

}  // namespace mobilemoe::check

#define TEST(name)                                                                        \
  static void test_##name();                                                              \
  static const ::mobilemoe::check::Registration registration_##name(#name, &test_##name); \
  static void test_##name()

#define CHECK(condition)                                                                       \
  do {                                                                                         \
    if (!(condition)) ::mobilemoe::check::fail(__FILE__, __LINE__, #condition " is not true"); \
  } while (false)

#define CHECK_EQ(a, b) ::mobilemoe::check::equal(__FILE__, __LINE__, #a " == " #b, (a), (b))

#define CHECK_NEAR(a, b, tolerance) \
  ::mobilemoe::check::near(__FILE__, __LINE__, #a " ~ " #b, static_cast<double>(a), static_cast<double>(b), tolerance)

// Like CHECK_THROWS(parse(text), ErrorCode::config); the second form asks for words of the message too.
#define CHECK_THROWS(expression, code) CHECK_THROWS_SAYING(expression, code, "")
#define CHECK_THROWS_SAYING(expression, code, part) \
  ::mobilemoe::check::throws(__FILE__, __LINE__, #expression, (code), (part), [&] { static_cast<void>(expression); })
