// Any bytes as JSON, and as a config.json.
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "compute/rope.h"
#include "error.h"
#include "files/json.h"
#include "files/parse_config.h"

namespace {

using mobilemoe::Error;
using mobilemoe::ErrorCode;

// The source text that a value remembers must parse to that value again.
void check_sources(const mobilemoe::Json& value) {
  const mobilemoe::Json again = mobilemoe::parse_json(value.source, "again", ErrorCode::file);
  if (again.value.index() != value.value.index()) std::abort();
  if (value.items() != nullptr && value.items()->size() != again.items()->size()) std::abort();
  if (value.text() != nullptr && *value.text() != *again.text()) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  try {
    const mobilemoe::Json json = mobilemoe::parse_json(text, "it", ErrorCode::file);
    check_sources(json);
    if (json.members() != nullptr) {
      for (const mobilemoe::JsonMember& member : *json.members()) {
        if (json.find(member.name) != &member.value) std::abort();
        check_sources(member.value);
      }
    }
    const mobilemoe::Config config = mobilemoe::parse_config(text);
    for (const double freq : mobilemoe::rope_frequencies(config)) {
      if (std::isnan(freq)) std::abort();
    }
  } catch (const Error&) {
  }
  return 0;
}
