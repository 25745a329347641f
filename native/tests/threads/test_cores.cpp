// Machines as /proc and /sys show them, made of files in a folder.
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "check.h"
#include "threads/cores.h"

using mobilemoe::allowed_cores;
using mobilemoe::default_threads;

namespace {

struct Machine {
  Machine() {
    char name[] = "/tmp/mobilemoe-cores-XXXXXX";
    root = mkdtemp(name);
  }
  ~Machine() { std::filesystem::remove_all(root, failed); }

  void write(const std::string& path, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(root + path).parent_path());
    FILE* file = std::fopen((root + path).c_str(), "w");
    CHECK(file != nullptr);
    std::fputs(text.c_str(), file);
    std::fclose(file);
  }
  void write_core(int core, const std::string& path, const std::string& text) const {
    write("/sys/devices/system/cpu/cpu" + std::to_string(core) + "/" + path, text);
  }

  // The process's group in version 2, whose `top` is mounted.
  void use_version_2(const std::string& group, const std::string& top = "/") const {
    write("/proc/self/cgroup", "0::" + group + "\n");
    write("/proc/self/mountinfo", "22 1 0:5 / /proc rw - proc proc rw\n24 22 0:20 " + top +
                                      " /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n");
  }

  std::string root;
  std::error_code failed;  // a destructor throws nothing
};

}  // namespace

TEST(a_process_may_use_at_least_one_core_and_uses_no_more_than_it_may) {
  CHECK(default_threads() >= 1);
  CHECK(default_threads() <= allowed_cores());
}

TEST(without_any_files_all_allowed_cores_count) {
  const Machine machine;
  CHECK_EQ(allowed_cores(machine.root, "0-3,8"), 5);
  CHECK_EQ(default_threads(machine.root, "0-3,8"), 5);
  for (const char* list : {"", "junk", "-1", "0", "7-"}) CHECK(allowed_cores(machine.root, list) >= 1);
}

TEST(quotas_of_version_2_count_at_the_process_s_own_group_and_at_those_above) {
  for (const char* folder : {"", "/user", "/user/job"}) {
    const Machine machine;
    const std::string file = std::string("/sys/fs/cgroup") + folder + "/cpu.max";
    machine.use_version_2("/user/job");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
    machine.write(file, "max 100000\n");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
    machine.write(file, "250000 100000\n");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 2);
    CHECK_EQ(default_threads(machine.root, "0-7"), 2);
    CHECK_EQ(allowed_cores(machine.root, "3"), 1);
    machine.write(file, "50000 100000\n");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 1);
    machine.write(file, "junk");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
  }
}

TEST(the_lowest_of_nested_quotas_counts) {
  const Machine machine;
  machine.use_version_2("/user/job");
  machine.write("/sys/fs/cgroup/user/cpu.max", "350000 100000\n");
  machine.write("/sys/fs/cgroup/user/job/cpu.max", "600000 100000\n");
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 3);
  machine.write("/sys/fs/cgroup/user/job/cpu.max", "20000 10000\n");
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 2);
}

TEST(a_container_finds_quotas_below_the_group_that_is_mounted_for_it) {
  const Machine machine;
  machine.use_version_2("/docker/7/job", "/docker/7");
  machine.write("/sys/fs/cgroup/job/cpu.max", "200000 100000\n");
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 2);
  machine.use_version_2("/docker/77", "/docker/7");  // another group, of which only the mounted one above may be seen
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
  machine.write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 3);
}

TEST(quotas_of_version_1_count_wherever_it_is_mounted) {
  for (const std::string folder : {"/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu,cpuacct", "/dev/cpuctl"}) {
    const Machine machine;
    machine.write("/proc/self/cgroup", "12:memory:/docker/7\n4:cpu,cpuacct:/docker/7/job\nno line of a cgroup\n0::/\n");
    machine.write("/proc/self/mountinfo",
                  "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
                  "32 31 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
                  "33 31 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
                  "34 31 0:31 /docker/7 " +
                      folder + " rw - cgroup cgroup rw,cpu,cpuacct\nno line of a mount\n");
    for (const std::string& group : {folder, folder + "/job"}) {
      machine.write(group + "/cpu.cfs_period_us", "100000\n");
      machine.write(group + "/cpu.cfs_quota_us", "-1\n");
    }
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
    machine.write(folder + "/cpu.cfs_quota_us", "390000\n");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 3);
    machine.write(folder + "/job/cpu.cfs_quota_us", "150000\n");
    CHECK_EQ(allowed_cores(machine.root, "0-7"), 1);
  }
}

TEST(two_hardware_threads_of_a_core_get_one_thread) {
  const Machine machine;
  for (int core = 0; core < 8; ++core) {
    const int first = core % 4;
    machine.write_core(core, "topology/thread_siblings_list",
                       std::to_string(first) + "," + std::to_string(first + 4) + "\n");
  }
  CHECK_EQ(allowed_cores(machine.root, "0-7"), 8);
  CHECK_EQ(default_threads(machine.root, "0-7"), 4);
  CHECK_EQ(default_threads(machine.root, "1,5"), 1);
  CHECK_EQ(default_threads(machine.root, "4-7"), 4);
  machine.use_version_2("/");
  machine.write("/sys/fs/cgroup/cpu.max", "300000 100000\n");
  CHECK_EQ(default_threads(machine.root, "0-7"), 3);
}

TEST(little_cores_get_no_thread_beside_big_ones) {
  const Machine phone;  // one prime core, three big, four little
  for (int core = 0; core < 8; ++core) {
    phone.write_core(core, "cpu_capacity", core < 4 ? "325\n" : core < 7 ? "870\n" : "1024\n");
    phone.write_core(core, "cpufreq/cpuinfo_max_freq", "2000000\n");
  }
  CHECK_EQ(allowed_cores(phone.root, "0-7"), 8);
  CHECK_EQ(default_threads(phone.root, "0-7"), 4);
  CHECK_EQ(default_threads(phone.root, "0-5"), 2);
  CHECK_EQ(default_threads(phone.root, "0-3"), 4);  // a process that may use little ones only
}

TEST(where_capacities_are_unknown_the_highest_clocks_tell_big_cores) {
  const Machine phone;
  for (int core = 0; core < 8; ++core) {
    phone.write_core(core, "cpufreq/cpuinfo_max_freq", core < 4 ? "1800000\n" : core < 7 ? "2420000\n" : "2840000\n");
  }
  CHECK_EQ(default_threads(phone.root, "0-7"), 4);
}

TEST(hybrids_of_intel_name_their_large_cores) {
  const Machine laptop;  // two large cores of two threads, four small ones whose clock is nearly as high
  for (int core = 0; core < 8; ++core) {
    const std::string pair = core < 4 ? std::to_string(core / 2 * 2) + "-" + std::to_string(core / 2 * 2 + 1) : "";
    laptop.write_core(core, "topology/thread_siblings_list", (core < 4 ? pair : std::to_string(core)) + "\n");
    laptop.write_core(core, "cpufreq/cpuinfo_max_freq", core < 4 ? "5200000\n" : "4200000\n");
  }
  CHECK_EQ(default_threads(laptop.root, "0-7"), 6);
  laptop.write("/sys/devices/cpu_core/cpus", "0-3\n");
  CHECK_EQ(default_threads(laptop.root, "0-7"), 2);
  CHECK_EQ(default_threads(laptop.root, "4-7"), 4);
}
