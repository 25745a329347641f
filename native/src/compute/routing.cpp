#include "compute/routing.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace mobilemoe {
namespace {

// `scores` may be the logits.
void score(const Config& config, const float* logits, float* scores) {
  const int experts = config.num_local_experts;
  if (config.router_score == RouterScore::sigmoid) {
    for (int e = 0; e < experts; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float largest = logits[0], total = 0;
  for (int e = 1; e < experts; ++e) largest = logits[e] > largest ? logits[e] : largest;
  for (int e = 0; e < experts; ++e) total += scores[e] = std::exp(logits[e] - largest);
  for (int e = 0; e < experts; ++e) scores[e] /= total;
}

// Fills experts [begin, end) with the best by score and bias that are not among those before.
void take_best(const Config& config, const float* scores, const float* bias, int begin, int end, int* experts) {
  for (int slot = begin; slot < end; ++slot) {
    int best = -1;
    float best_rank = 0;
    for (int e = 0; e < config.num_local_experts; ++e) {
      bool taken = false;
      for (int i = 0; i < slot; ++i) taken = taken || experts[i] == e;
      if (taken) continue;
      float rank = scores[e] + bias[e];
      if (std::isnan(rank)) rank = -std::numeric_limits<float>::infinity();
      if (best < 0 || rank > best_rank) best = e, best_rank = rank;
    }
    experts[slot] = best;
  }
}

}  // namespace

void choose_experts(const Config& config, const float* logits, const float* bias, const int* forced, float* scores,
                    int* experts, float* weights, const Preference* preference) {
  const int active = config.num_experts_per_tok;
  score(config, logits, scores);
  if (forced != nullptr) {
    std::copy_n(forced, active, experts);
  } else if (preference == nullptr) {
    take_best(config, scores, bias, 0, active, experts);
  } else {
    float* preferred = scores + config.num_local_experts;
    for (int e = 0; e < config.num_local_experts; ++e) {
      preferred[e] = logits[e] + (preference->cached[e] != 0 ? preference->bonus : 0.0f);
    }
    score(config, preferred, preferred);
    take_best(config, scores, bias, 0, preference->always_top, experts);
    take_best(config, preferred, bias, preference->always_top, active, experts);
  }
  float total = 1e-20f;
  for (int slot = 0; slot < active; ++slot) total += weights[slot] = scores[experts[slot]];
  const float factor = static_cast<float>(config.routed_scaling_factor);
  for (int slot = 0; slot < active; ++slot) {
    weights[slot] = (config.norm_topk_prob ? weights[slot] / total : weights[slot]) * factor;
  }
}

}  // namespace mobilemoe
