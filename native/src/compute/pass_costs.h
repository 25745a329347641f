// The time that passes of the model take, by their number of rows, as it was measured on the way.
#pragma once

#include <array>
#include <cstdint>

namespace mobilemoe {

class PassCosts {
 public:
  static constexpr int kMostRows = 64;  // no longer passes are noted

  void note(int rows, double seconds);

  // Whether enough passes of so many rows were measured lately.
  bool is_known(int rows) const;

  // Seconds; where that is not known an estimate, as low as it may well be. 0 as long as none was measured at all.
  double of(int rows) const;

 private:
  static constexpr int kRecent = 8;

  struct Cost {
    std::array<double, kRecent> recent{};  // seconds, the oldest is overwritten
    int64_t measured = 0;                  // passes
    int64_t latest = 0;                    // pass
    double seconds = 0;                    // what an undisturbed pass takes
  };

  std::array<Cost, kMostRows + 1> costs_{};
  int64_t passes_ = 0;
};

}  // namespace mobilemoe
