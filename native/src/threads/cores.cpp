#include "threads/cores.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace mobilemoe {
namespace {

constexpr size_t kMaxText = 64 * 1024;

// The beginning of a file, or an empty text if it cannot be read.
std::string read_text(const std::string& path) {
  std::string text;
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    text.resize(kMaxText);
    text.resize(std::fread(&text[0], 1, kMaxText, file));
    std::fclose(file);
  }
  return text;
}

// How many cores a quota of a period allows, both in microseconds; 0 where they are no limit.
double cores_of(const std::string& quota, const std::string& period) {
  const double of_quota = std::strtod(quota.c_str(), nullptr);  // "max" is 0, and -1 no limit either
  const double of_period = std::strtod(period.c_str(), nullptr);
  return of_quota > 0 && of_period > 0 ? of_quota / of_period : 0;
}

double limit_of(const std::string& folder, bool version_1) {
  if (version_1) return cores_of(read_text(folder + "/cpu.cfs_quota_us"), read_text(folder + "/cpu.cfs_period_us"));
  const std::string both = read_text(folder + "/cpu.max");
  const size_t blank = both.find(' ');
  return blank == std::string::npos ? 0 : cores_of(both, both.substr(blank));
}

bool has_cpu(const std::string& controllers) { return ("," + controllers + ",").find(",cpu,") != std::string::npos; }

int cores_of_affinity() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) return std::max(1, CPU_COUNT(&allowed));
#endif
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

}  // namespace

int cores_of_quotas(const std::string& cgroups, const std::string& mount, int most) {
  double least = most;
  for (size_t begin = 0; begin < cgroups.size();) {
    const size_t end = std::min(cgroups.find('\n', begin), cgroups.size());
    const std::string line = cgroups.substr(begin, end - begin);  // NUMBER:CONTROLLERS:PATH
    begin = end + 1;
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_1 = !controllers.empty();
    if (version_1 && !has_cpu(controllers)) continue;
    const std::string root = version_1 ? mount + "/cpu" : mount;
    for (std::string path = line.substr(second + 1);; path.resize(path.rfind('/'))) {  // the group and those above it
      if (const double limit = limit_of(root + path, version_1); limit > 0) least = std::min(least, limit);
      if (path.find('/') == std::string::npos) break;
    }
  }
  return std::max(1, static_cast<int>(least));
}

int allowed_cores() { return cores_of_quotas(read_text("/proc/self/cgroup"), "/sys/fs/cgroup", cores_of_affinity()); }

}  // namespace mobilemoe
