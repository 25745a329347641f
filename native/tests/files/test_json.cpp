#include <clocale>
#include <string>

#include "check.h"
#include "files/json.h"

namespace mobilemoe {
namespace {

Json parse(const std::string& text) { return parse_json(text, "it", ErrorCode::file); }

TEST(json_reads_every_kind_of_value) {
  const std::string text = R"( {"a": [1, -2.5, true, false, null, "x"], "b": {}, "c": []} )";
  const Json json = parse(text);
  const Json::Items& items = *json.find("a")->items();
  CHECK_EQ(items.size(), 6u);
  CHECK_EQ(*items[0].integer(), 1);
  CHECK_EQ(*items[1].number(), -2.5);
  CHECK(items[1].integer() == nullptr);
  CHECK(*items[2].boolean());
  CHECK(!*items[3].boolean());
  CHECK(items[4].is_null());
  CHECK_EQ(*items[5].text(), "x");
  CHECK(json.find("b")->members()->empty());
  CHECK(json.find("c")->items()->empty());
  CHECK(json.find("d") == nullptr);
  CHECK(items[0].find("a") == nullptr);
}

TEST(json_keeps_whole_numbers_exact) {
  CHECK_EQ(*parse("9223372036854775807").integer(), INT64_MAX);
  CHECK_EQ(*parse("-9223372036854775807").integer(), -INT64_MAX);
  CHECK_EQ(*parse("9007199254740993").integer(), 9007199254740993);
  CHECK(parse("9223372036854775808").integer() == nullptr);
  CHECK_EQ(*parse("9223372036854775808").number(), 9223372036854775808.0);
  CHECK(parse("1.0").integer() == nullptr);
  CHECK(parse("1e3").integer() == nullptr);
  CHECK_EQ(*parse("1e3").number(), 1000.0);
  CHECK_EQ(*parse("-1.5E-2").number(), -0.015);
}

// In a program that has set the user's locale, strtod may expect 0,5 instead of 0.5.
TEST(json_reads_numbers_whatever_the_locale_of_the_program) {
  const std::string before = std::setlocale(LC_NUMERIC, nullptr);
  for (const char* name : {"de_DE.UTF-8", "de_DE.utf8", "fr_FR.UTF-8", "fr_FR.utf8"}) {
    if (std::setlocale(LC_NUMERIC, name) != nullptr) break;
  }
  CHECK_EQ(*parse("-1.5E-2").number(), -0.015);
  CHECK_EQ(*parse("0.5").number(), 0.5);
  std::setlocale(LC_NUMERIC, before.c_str());
}

TEST(json_decodes_escapes_and_utf8) {
  CHECK_EQ(*parse(R"("\"\\\/\b\f\n\r\t")").text(), "\"\\/\b\f\n\r\t");
  CHECK_EQ(*parse(R"("\u0041\u00e9\u20AC\ud83d\ude00")").text(), "A\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK_EQ(*parse("\"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\"").text(), "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80");
  CHECK_EQ(parse(R"("\u0000")").text()->size(), 1u);
}

TEST(json_takes_the_last_of_two_members_of_one_name) {
  const Json json = parse(R"({"a": 1, "b": 2, "a": 3})");
  CHECK_EQ(*json.find("a")->integer(), 3);
  CHECK_EQ(json.members()->size(), 2u);
}

TEST(json_remembers_how_a_value_was_written) {
  const std::string text = R"({"a": {"b" :[1,2]} , "c": 1.50})";
  const Json json = parse(text);
  CHECK_EQ(json.find("a")->source, R"({"b" :[1,2]})");
  CHECK_EQ(json.find("c")->source, "1.50");
}

TEST(json_refuses_what_is_not_json) {
  for (const char* text : {"",
                           " ",
                           "{",
                           "[",
                           "]",
                           "{]",
                           "[1,]",
                           "[,1]",
                           "{,}",
                           "{\"a\"}",
                           "{\"a\":}",
                           "{a:1}",
                           "{\"a\":1,}",
                           "[1 2]",
                           "1 2",
                           "01",
                           "-",
                           "+1",
                           ".5",
                           "1.",
                           "1e",
                           "1e+",
                           "0x1",
                           "NaN",
                           "Infinity",
                           "nul",
                           "True",
                           "\"",
                           "\"\\\"",
                           "\"\\x\"",
                           "\"\\u12\"",
                           "\"\\u12G4\"",
                           "'a'",
                           "[1]]",
                           "//",
                           "\"a\nb\"",
                           "\"\\ud800\"",
                           "\"\\udc00\"",
                           "\"\\ud800\\u0041\"",
                           "1e999",
                           "\xEF\xBB\xBF{}"}) {
    CHECK_THROWS_SAYING(parse(text), ErrorCode::file, "it is not valid JSON");
  }
}

TEST(json_refuses_text_that_is_not_utf8) {
  for (const char* bytes : {"\x80", "\xC0\x80", "\xC1\xBF", "\xC3", "\xC3(", "\xE0\x80\x80", "\xE2\x82", "\xED\xA0\x80",
                            "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80", "\xFF"}) {
    CHECK_THROWS_SAYING(parse("\"" + std::string(bytes) + "\""), ErrorCode::file, "UTF-8");
  }
}

TEST(json_limits_depth_and_values) {
  CHECK(parse(std::string(kJsonDepth, '[') + std::string(kJsonDepth, ']')).items() != nullptr);
  CHECK_THROWS_SAYING(parse(std::string(kJsonDepth + 1, '[') + std::string(kJsonDepth + 1, ']')), ErrorCode::file,
                      "too deeply");
  CHECK_THROWS_SAYING(parse(std::string(1 << 20, '[')), ErrorCode::file, "too deeply");
  CHECK_EQ(parse("[[],[],[[]]]").items()->size(), 3u);
  std::string many = "[0";
  while (many.size() < 2 * kJsonValues + 2) many += ",0";
  CHECK_THROWS_SAYING(parse(many + "]"), ErrorCode::file, "too many values");
}

TEST(json_quotes_any_text_as_valid_json) {
  const std::string odd = "a\"b\\c\n\x01\xFF";
  const std::string quoted = quote_json(odd);
  CHECK_EQ(*parse(quoted).text(), "a\"b\\c\n\x01?");
  CHECK(shorten(std::string(500, 'x')).size() < 110);
}

}  // namespace
}  // namespace mobilemoe
