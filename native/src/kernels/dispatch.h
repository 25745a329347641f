// Which tables of kernels this build has, which of them this machine can run, and which one an engine takes.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe {

// The table of "scalar", "avx2", "avxvnni", "avx512", "amx", "neon" or "neon_i8mm"; null where this build or this
// machine does not have it.
const Kernels* find_kernels(const char* isa);

// The names for which `find_kernels` finds a table here, fastest first, ended by null.
const char* const* available_kernels();

// The fastest table, or the one that the environment variable MOBILEMOE_ISA names; throws Error(usage) if that is not
// available here.
const Kernels& choose_kernels();

}  // namespace mobilemoe
