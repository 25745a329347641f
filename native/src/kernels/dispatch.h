// Which tables of kernels this build has, which of them this machine can run, and which one an engine takes.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe {

// "scalar", "avx2", "avxvnni", "avx512", "amx", "neon", "neon_i8mm"; null if this build or this machine has it not.
const Kernels* find_kernels(const char* isa);

// The names that `find_kernels` would answer here, best first, ended by null.
const char* const* available_kernels();

// The best, or what the environment's MOBILEMOE_ISA names; throws Error(usage) if that is not to be had here.
const Kernels& choose_kernels();

}  // namespace mobilemoe
