// How many cores this process may use.
#pragma once

#include <string>

namespace mobilemoe {

// Of what the machine has, those that the process's affinity (taskset, cpusets) leaves it, or fewer where the quota of
// a cgroup is less: 2.5 cores are 2. At least 1.
int allowed_cores();

// The cores that the quotas of a process allow, as the text of its /proc/self/cgroup and the folder where cgroups are
// mounted say; `most` where there is no lower limit. At least 1.
int cores_of_quotas(const std::string& cgroups, const std::string& mount, int most);

}  // namespace mobilemoe
