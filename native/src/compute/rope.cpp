#include "compute/rope.h"

#include <algorithm>
#include <cmath>

namespace mobilemoe {

std::vector<double> rope_frequencies(const Config& config) {
  constexpr double kPi = 3.14159265358979323846;
  std::vector<double> freq_R;
  for (int pair = 0; pair < config.head_dim; pair += 2) {
    double freq = std::pow(config.rope_theta, -static_cast<double>(pair) / config.head_dim);
    if (config.has_rope_scaling) {
      const RopeScaling& scaling = config.rope_scaling;
      const double turns = scaling.original_max_position_embeddings * freq / (2 * kPi);  // over the original context
      const double low = scaling.low_freq_factor, high = scaling.high_freq_factor;
      // Where both are the same, the blend would divide by zero.
      const double keep = low == high ? turns >= low : std::clamp((turns - low) / (high - low), 0.0, 1.0);
      freq = keep * freq + (1 - keep) * freq / scaling.factor;
    }
    freq_R.push_back(freq);
  }
  return freq_R;
}

}  // namespace mobilemoe
