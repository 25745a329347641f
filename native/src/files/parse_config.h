// Reads config.json.
#pragma once

#include <string_view>

#include "model/config.h"

namespace mobilemoe {

// Reads the text of a config.json; throws Error(config) that names field, value and rule.
Config parse_config(std::string_view text);

}  // namespace mobilemoe
