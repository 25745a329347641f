// The table of each instruction set. Each is to be called only on a machine that has the instruction set: the files
// that define these functions are compiled for it.
#pragma once

#include "kernels/kernels.h"

namespace mobilemoe {

namespace scalar {
const Kernels* kernels();
}

#if defined(__x86_64__)
namespace avx2 {
const Kernels* kernels();
}
namespace avxvnni {
const Kernels* kernels();
}
namespace avx512 {
const Kernels* kernels();
}
namespace amx {
const Kernels* kernels();  // for a machine with AVX-512; null if it has no AMX
}
#elif defined(__aarch64__)
namespace neon {
const Kernels* kernels();
}
namespace neon_i8mm {
const Kernels* kernels();
}
#endif

}  // namespace mobilemoe
