#include "compute/process_memory.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace mobilemoe {

size_t process_memory() {
  unsigned long long all = 0, resident = 0;  // pages
  std::FILE* file = std::fopen("/proc/self/statm", "re");
  if (file == nullptr) return 0;
  const int found = std::fscanf(file, "%llu %llu", &all, &resident);
  std::fclose(file);
  return found == 2 ? static_cast<size_t>(resident) * static_cast<size_t>(sysconf(_SC_PAGESIZE)) : 0;
}

std::string size_text(size_t bytes) {
  if (bytes < 10000) return std::to_string(bytes) + (bytes == 1 ? " byte" : " bytes");
  size_t step = 1;
  while (bytes / step >= 10000) step *= 10;
  bytes -= bytes % step;
  const bool is_large = bytes >= 1000000000;
  char text[40];
  std::snprintf(text, sizeof text, "%.15g %s", static_cast<double>(bytes) / (is_large ? 1e9 : 1e6),
                is_large ? "GB" : "MB");
  return text;
}

}  // namespace mobilemoe
