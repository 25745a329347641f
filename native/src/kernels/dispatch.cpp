#include "kernels/dispatch.h"

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <string>

#include "error.h"
#include "kernels/tables.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace mobilemoe {

namespace {

struct Machine {
  bool avx2 = false, avxvnni = false, avx512 = false;
  bool neon = false, neon_i8mm = false;
};

#if defined(__x86_64__)

// The register states that the operating system saves: a CPU may have wider registers than the system supports.
uint64_t saved_states() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

Machine inspect_machine() {
  struct {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    bool read(unsigned leaf, unsigned subleaf) { return __get_cpuid_count(leaf, subleaf, &eax, &ebx, &ecx, &edx) != 0; }
  } basic, extended, more;
  const auto has = [](unsigned bits, std::initializer_list<int> wanted) {
    for (const int bit : wanted)
      if ((bits >> bit & 1) == 0) return false;
    return true;
  };
  Machine machine;
  if (!basic.read(1, 0) || !has(basic.ecx, {27}) || !extended.read(7, 0)) return machine;  // OSXSAVE
  const uint64_t saved = saved_states();
  const bool ymm = (saved & 0x06) == 0x06;
  const bool zmm = (saved & 0xe6) == 0xe6;
  machine.avx2 = ymm && has(basic.ecx, {12, 28, 29}) && has(extended.ebx, {5});  // FMA, AVX, F16C; AVX2
  machine.avxvnni = machine.avx2 && more.read(7, 1) && has(more.eax, {4});
  // F, DQ, BW, VL; VBMI, VNNI
  machine.avx512 = machine.avx2 && zmm && has(extended.ebx, {16, 17, 30, 31}) && has(extended.ecx, {1, 11});
  return machine;
}

#elif defined(__aarch64__) && defined(__linux__)

Machine inspect_machine() {
  const unsigned long caps = getauxval(AT_HWCAP);
  const unsigned long more = getauxval(AT_HWCAP2);
  Machine machine;
  machine.neon = (caps & HWCAP_ASIMDDP) != 0 && (caps & HWCAP_ASIMDHP) != 0;
  machine.neon_i8mm = machine.neon && (more & HWCAP2_I8MM) != 0;
  return machine;
}

#elif defined(__aarch64__) && defined(__APPLE__)

Machine inspect_machine() {
  const auto has = [](const char* feature) {
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
  };
  Machine machine;
  machine.neon = has("hw.optional.arm.FEAT_DotProd") && has("hw.optional.arm.FEAT_FP16");
  machine.neon_i8mm = machine.neon && has("hw.optional.arm.FEAT_I8MM");
  return machine;
}

#else

Machine inspect_machine() { return {}; }

#endif

constexpr int kMostTables = 6;

// The tables that this machine can run, fastest first.
struct Available {
  const Kernels* tables[kMostTables] = {};
  const char* names[kMostTables + 1] = {};
  int count = 0;

  Available() {
    [[maybe_unused]] const Machine machine = inspect_machine();
#if defined(__x86_64__)
    if (machine.avx512) add(avx512::kernels());
    // Behind AVX-512, which was 1.1 to 1.2 times as fast in prefill and in decode on the one machine with AMX where
    // both were measured (LOG.md, 2026-11-26).
    if (machine.avx512) add(amx::kernels());
    if (machine.avxvnni) add(avxvnni::kernels());
    if (machine.avx2) add(avx2::kernels());
#elif defined(__aarch64__)
    if (machine.neon_i8mm) add(neon_i8mm::kernels());
    if (machine.neon) add(neon::kernels());
#endif
    add(scalar::kernels());
  }

  void add(const Kernels* table) {
    if (table == nullptr) return;
    tables[count] = table;
    names[count++] = table->isa;
  }
};

const Available& available() {
  static const Available instance;
  return instance;
}

}  // namespace

const Kernels* find_kernels(const char* isa) {
  for (int i = 0; i < available().count; ++i)
    if (std::strcmp(available().names[i], isa) == 0) return available().tables[i];
  return nullptr;
}

const char* const* available_kernels() { return available().names; }

const Kernels& choose_kernels() {
  const char* wanted = std::getenv("MOBILEMOE_ISA");
  if (wanted == nullptr || *wanted == 0) return *available().tables[0];
  if (const Kernels* found = find_kernels(wanted)) return *found;
  std::string names;
  for (int i = 0; i < available().count; ++i) names += (i == 0 ? "" : ", ") + std::string(available().names[i]);
  throw Error(ErrorCode::usage,
              "MOBILEMOE_ISA is \"" + std::string(wanted) + "\", but this machine and build have only " + names);
}

}  // namespace mobilemoe
