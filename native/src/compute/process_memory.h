// How much memory this process has, and sizes of memory in words.
#pragma once

#include <cstddef>
#include <string>

namespace mobilemoe {

// Bytes in memory now, mapped files included; 0 where the system does not say.
size_t process_memory();

// "1 byte", "1000 bytes", "83.72 MB" or "1.235 GB" (decimal): four digits, rounded down.
std::string size_text(size_t bytes);

}  // namespace mobilemoe
