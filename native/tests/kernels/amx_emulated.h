// The AMX kernels on emulated tiles; to be called only on a machine with AVX-512.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe::amx {

const Kernels* emulated_kernels();
bool emulated_tiles_are_released();
bool emulated_is_exact();
bool damaged_is_exact();

}  // namespace mobilemoe::amx
