// How much memory this process has.
#pragma once

#include <cstddef>

namespace mobilemoe {

// Bytes in memory now, mapped files included; 0 where the system does not say.
size_t process_memory();

}  // namespace mobilemoe
