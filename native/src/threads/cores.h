// How many cores this process may use.
#pragma once

#include <string>

namespace mobilemoe {

// The cores of the machine to which the process's affinity (taskset, cpusets) restricts it, or fewer where the quota of
// a cgroup is lower; a quota of 2.5 cores counts as 2. At least 1.
int allowed_cores();

// The number of cores that the cgroup quotas of a process allow, or `most` if they allow more. `cgroups` is the text of
// its /proc/self/cgroup, and `mount` the folder where cgroups are mounted. At least 1.
int cores_of_quotas(const std::string& cgroups, const std::string& mount, int most);

}  // namespace mobilemoe
