// How many cores this process may use, and on how many of them threads are worth their wait for each other.
#pragma once

#include <string>

namespace mobilemoe {

// The cores of the machine to which the process's affinity (taskset, cpusets) restricts it, or fewer where the quota of
// a cgroup is lower; a quota of 2.5 cores counts as 2. At least 1.
int allowed_cores();

// How many threads to use unless told otherwise: one for each physical core among the allowed ones that is about as
// fast as the fastest, and no more than a quota allows. At least 1.
//
// Two threads of one core share the units that multiply, and the memory's speed is the limit of decoding; all threads
// wait for the slowest, so that little cores beside big ones make the whole slower.
int default_threads();

// The same for a machine whose /proc and /sys are folders in `root`, and a process that may use the cores `allowed`
// (in Linux's notation: "0-3,8").
int allowed_cores(const std::string& root, const std::string& allowed);
int default_threads(const std::string& root, const std::string& allowed);

}  // namespace mobilemoe
