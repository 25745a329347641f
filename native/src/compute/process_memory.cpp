#include "compute/process_memory.h"

#include <unistd.h>

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

}  // namespace mobilemoe
