// Whether reading experts ahead pays: it hides the time that the disk takes to answer, and reads more than is needed.
// Which of the two weighs more depends on disk, model and memory, so it is tried out now and then, and the faster way
// is taken until the next trial.
#pragma once

#include <array>
#include <cstddef>

namespace mobilemoe {

class AheadTrial {
 public:
  bool reads_ahead() const;  // in the next pass

  // That a pass took so many seconds for each expert that it visited.
  void note(double seconds);

 private:
  static constexpr int kBurst = 4;                        // passes of a trial that are done one way before the other
  static constexpr size_t kEach = 16;                     // passes of a trial for each way
  static constexpr int kFilling = 32;                     // passes before the first trial: the cache fills
  static constexpr int kLeastGap = 256, kMostGap = 4096;  // passes between trials: twice as many after each that agrees

  bool ahead_ = true;  // the faster way
  int left_ = kFilling, gap_ = kLeastGap;
  std::array<std::array<double, kEach>, 2> tried_{};  // seconds, without and with it
  std::array<size_t, 2> counts_{};
};

}  // namespace mobilemoe
