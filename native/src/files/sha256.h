// SHA-256 (FIPS 180-4), for fingerprints that tell whether a file has changed. Uses the SHA instructions of x86 CPUs
// that have them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace mobilemoe {

class Sha256 {
 public:
  void update(const void* data, size_t bytes);
  std::array<uint8_t, 32> finish();  // once

 private:
  std::array<uint32_t, 8> state_{0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};  // bytes that wait for a whole block
  uint64_t total_ = 0;               // bytes seen
};

}  // namespace mobilemoe
