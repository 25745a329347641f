#include "threads/cores.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <set>
#include <string_view>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mobilemoe {
namespace {

constexpr int kMaxCores = 8192;
constexpr size_t kMaxLists = 256 * 1024;  // bytes of /proc's files

// The beginning of a file, or an empty text if it cannot be read.
std::string read_text(const std::string& path, size_t most = 4096) {
  std::string text;
  if (FILE* file = std::fopen(path.c_str(), "r")) {
    text.resize(most);
    text.resize(std::fread(&text[0], 1, most, file));
    std::fclose(file);
  }
  return text;
}

std::vector<std::string> split(const std::string& text, char at) {
  std::vector<std::string> parts;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(at, begin), text.size());
    parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

bool contains(const std::string& list, std::string_view word) {
  const auto words = split(list, ',');
  return std::find(words.begin(), words.end(), word) != words.end();
}

// Linux's notation of a set of cores, like "0-3,8".
std::set<int> cores_of(const std::string& list) {
  std::set<int> cores;
  for (const std::string& range : split(list, ',')) {
    char* end = nullptr;
    const long first = std::strtol(range.c_str(), &end, 10);
    const long last = *end == '-' ? std::strtol(end + 1, nullptr, 10) : first;
    if (end == range.c_str() || first < 0) continue;
    for (long core = first; core <= std::min<long>(last, kMaxCores); ++core) cores.insert(static_cast<int>(core));
  }
  return cores;
}

// How many cores a quota of a period allows, both in microseconds; 0 where they are no limit.
double share_of(const std::string& quota, const std::string& period) {
  const double of_quota = std::strtod(quota.c_str(), nullptr);  // "max" is 0, and -1 no limit either
  const double of_period = std::strtod(period.c_str(), nullptr);
  return of_quota > 0 && of_period > 0 ? of_quota / of_period : 0;
}

double limit_of(const std::string& folder, bool version_1) {
  if (version_1) return share_of(read_text(folder + "/cpu.cfs_quota_us"), read_text(folder + "/cpu.cfs_period_us"));
  const std::string both = read_text(folder + "/cpu.max");
  const size_t blank = both.find(' ');
  return blank == std::string::npos ? 0 : share_of(both, both.substr(blank));
}

// Where a hierarchy of cgroups is mounted: the folder that shows group `top` and those below it.
struct Mount {
  std::string top, folder;
  bool version_1;
};

// The mounts that may hold quotas, from the text of /proc/self/mountinfo: "ID PARENT DEVICE TOP FOLDER OPTIONS
// [FIELDS] - TYPE SOURCE OPTIONS". In a container `top` is often the container's own group.
std::vector<Mount> cgroup_mounts(const std::string& mountinfo) {
  std::vector<Mount> mounts;
  for (const std::string& line : split(mountinfo, '\n')) {
    const auto words = split(line, ' ');
    const auto dash = std::find(words.begin(), words.end(), "-");
    if (words.size() < 6 || words.end() - dash < 4) continue;
    const bool version_1 = dash[1] == "cgroup" && contains(dash[3], "cpu");
    if (version_1 || dash[1] == "cgroup2") mounts.push_back({words[3] == "/" ? "" : words[3], words[4], version_1});
  }
  return mounts;
}

// The number of cores that the quotas of the process's groups and of all above them allow; `most` if they allow more.
double cores_of_quotas(const std::string& root, double most) {
  const auto mounts = cgroup_mounts(read_text(root + "/proc/self/mountinfo", kMaxLists));
  for (const std::string& line :
       split(read_text(root + "/proc/self/cgroup", kMaxLists), '\n')) {  // NUMBER:CONTROLLERS:PATH
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool version_1 = !controllers.empty();
    if (version_1 && !contains(controllers, "cpu")) continue;
    for (const Mount& mount : mounts) {
      if (mount.version_1 != version_1) continue;
      std::string path = line.substr(second + 1);
      if ((path + "/").compare(0, mount.top.size() + 1, mount.top + "/") == 0) path.erase(0, mount.top.size());
      for (;; path.resize(path.rfind('/'))) {  // the group and those above it
        const double limit = limit_of(root + mount.folder + path, version_1);
        if (limit > 0) most = std::min(most, limit);
        if (path.find('/') == std::string::npos) break;
      }
    }
  }
  return most;
}

int whole(double cores) { return std::max(1, static_cast<int>(cores)); }

// Those of `cores` that are about as fast as the fastest of them. What Linux says of a core's speed differs between
// kinds of machine; where it says nothing, all are.
std::set<int> fast_cores(const std::string& root, const std::set<int>& cores) {
  const auto fastest = [&](const char* file, double share) {
    std::set<int> fast;
    const auto speed = [&](int core) {
      return std::strtod(read_text(root + "/sys/devices/system/cpu/cpu" + std::to_string(core) + file).c_str(),
                         nullptr);
    };
    double most = 0;
    for (const int core : cores) most = std::max(most, speed(core));
    for (const int core : cores) {
      if (speed(core) > share * most) fast.insert(core);
    }
    return fast;
  };
  // Capacity is the speed at the highest clock: 1,024 for the fastest, 700 to 900 for a phone's middle cores, 150 to
  // 400 for its little ones. A clock alone says less: Intel's small cores have .75 of the large ones'.
  std::set<int> fast = fastest("/cpu_capacity", 0.5);
  if (fast.empty()) fast = fastest("/cpufreq/cpuinfo_max_freq", 0.76);
  if (fast.empty()) fast = cores;
  const std::set<int> large = cores_of(read_text(root + "/sys/devices/cpu_core/cpus"));  // of Intel's hybrids
  std::set<int> both;
  std::set_intersection(fast.begin(), fast.end(), large.begin(), large.end(), std::inserter(both, both.end()));
  return both.empty() ? fast : both;
}

// How many physical cores the hardware threads `cores` are.
int physical_cores(const std::string& root, const std::set<int>& cores) {
  std::set<std::string> physical;
  for (const int core : cores) {
    const std::string name = "cpu" + std::to_string(core);
    const std::string siblings = read_text(root + "/sys/devices/system/cpu/" + name + "/topology/thread_siblings_list");
    physical.insert(siblings.empty() ? name : siblings);
  }
  return static_cast<int>(physical.size());
}

#if defined(__linux__)
std::string allowed_by_affinity() {
  std::string list;
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    for (int core = 0; core < CPU_SETSIZE; ++core) {
      if (CPU_ISSET(core, &allowed)) list += std::to_string(core) + ",";
    }
  }
  return list.empty() ? "0-" + std::to_string(std::max(1U, std::thread::hardware_concurrency()) - 1) : list;
}
#endif

}  // namespace

int allowed_cores(const std::string& root, const std::string& allowed) {
  return whole(cores_of_quotas(root, static_cast<double>(cores_of(allowed).size())));
}

int default_threads(const std::string& root, const std::string& allowed) {
  return whole(cores_of_quotas(root, physical_cores(root, fast_cores(root, cores_of(allowed)))));
}

#if defined(__linux__)
int allowed_cores() { return allowed_cores("", allowed_by_affinity()); }
int default_threads() { return default_threads("", allowed_by_affinity()); }
#else
int allowed_cores() { return std::max(1, static_cast<int>(std::thread::hardware_concurrency())); }
int default_threads() {
#if defined(__APPLE__)
  for (const char* name : {"hw.perflevel0.physicalcpu", "hw.physicalcpu"}) {  // the first is of Apple's own chips
    int cores = 0;
    size_t size = sizeof cores;
    if (sysctlbyname(name, &cores, &size, nullptr, 0) == 0 && cores > 0) return std::min(cores, allowed_cores());
  }
#endif
  return allowed_cores();
}
#endif

}  // namespace mobilemoe
