// Runs all tests, or those whose name contains one of the arguments.
#include <cstdio>
#include <cstring>

#include "check.h"

namespace {

using mobilemoe::check::Test;

bool passes(const Test& test) {
  try {
    test.body();
    return true;
  } catch (const mobilemoe::check::Failure& failure) {
    std::printf("FAILED %s\n  %s\n", test.name, failure.what.c_str());
  } catch (const std::exception& error) {
    std::printf("FAILED %s\n  threw: %s\n", test.name, error.what());
  }
  return false;
}

bool is_wanted(const Test& test, int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    if (std::strstr(test.name, argv[i])) return true;
  }
  return argc < 2;
}

}  // namespace

int main(int argc, char** argv) {
  int passed = 0;
  int failed = 0;
  for (const Test& test : mobilemoe::check::all_tests()) {
    if (!is_wanted(test, argc, argv)) continue;
    ++(passes(test) ? passed : failed);
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed > 0 || passed == 0 ? 1 : 0;
}
