// Whether this machine and its system offer AMX. To be called only on a machine that has AVX-512 with VNNI, for which
// this file is compiled.
#include <cpuid.h>

#include "kernels/amx/table.h"
#include "kernels/tables.h"

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace mobilemoe::amx {
namespace {

bool machine_has_amx() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  constexpr unsigned features = 1u << 24 | 1u << 25;  // AMX-TILE, AMX-INT8
  if ((edx & features) != features) return false;
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr uint32_t states = 3u << 17;  // XTILECFG, XTILEDATA
  return (low & states) == states;
}

// Linux gives a process the large state of tiles only if asked, once for all its threads.
bool system_permits_tiles() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

// Null if this machine or its system has no AMX, or if its products are not those of AVX-512. They are compared because
// these kernels were mostly tested on emulated tiles, and may never have run on this kind of processor.
const Kernels* kernels() {
  static const Kernels* const found = []() -> const Kernels* {
    if (!machine_has_amx() || !system_permits_tiles()) return nullptr;
    static const Kernels instance = table<HardwareTiles>();
    return is_exact(instance) ? &instance : nullptr;
  }();
  return found;
}

}  // namespace mobilemoe::amx
