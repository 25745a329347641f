#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "check.h"
#include "threads/cores.h"

using mobilemoe::allowed_cores;
using mobilemoe::cores_of_quotas;

namespace {

// A folder in place of the one where cgroups are mounted.
struct Mount {
  Mount() {
    char name[] = "/tmp/mobilemoe-cores-XXXXXX";
    path = mkdtemp(name);
  }
  ~Mount() { std::filesystem::remove_all(path, failed); }

  void write(const std::string& folder, const std::string& name, const std::string& text) const {
    CHECK_EQ(std::system(("mkdir -p " + path + folder).c_str()), 0);
    FILE* file = std::fopen((path + folder + "/" + name).c_str(), "w");
    CHECK(file != nullptr);
    std::fputs(text.c_str(), file);
    std::fclose(file);
  }

  std::string path;
  std::error_code failed;  // a destructor throws nothing
};

}  // namespace

TEST(a_process_may_use_at_least_one_core) { CHECK(allowed_cores() >= 1); }

TEST(quotas_of_version_2_count_at_the_process_s_own_group_and_at_those_above) {
  const std::string cgroups = "0::/user/job\n";
  for (const char* folder : {"", "/user", "/user/job"}) {
    const Mount mount;
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 8);
    mount.write(folder, "cpu.max", "max 100000\n");
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 8);
    mount.write(folder, "cpu.max", "250000 100000\n");
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 2);
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 1), 1);
    mount.write(folder, "cpu.max", "50000 100000\n");
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 1);
    mount.write(folder, "cpu.max", "junk");
    CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 8);
  }
}

TEST(quotas_of_version_1_count_as_a_container_sees_them) {
  const Mount mount;
  const std::string cgroups = "12:memory:/docker/7\n4:cpu,cpuacct:/docker/7\nno line of a cgroup\n";
  mount.write("/cpu", "cpu.cfs_period_us", "100000\n");
  mount.write("/cpu", "cpu.cfs_quota_us", "-1\n");
  CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 8);
  mount.write("/cpu", "cpu.cfs_quota_us", "300000\n");
  CHECK_EQ(cores_of_quotas(cgroups, mount.path, 8), 3);
  CHECK_EQ(cores_of_quotas("2:cpuset:/docker/7\n", mount.path, 8), 8);
}
