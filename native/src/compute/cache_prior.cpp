#include "compute/cache_prior.h"

#include <algorithm>
#include <cmath>

namespace mobilemoe {

CachePrior::CachePrior(const Config& config, const RoutingOptions& options)
    : config_(config),
      strength_(options.cache_prior),
      always_top_(options.always_top < 0 ? config.num_experts_per_tok / 2 : options.always_top),
      places_(static_cast<size_t>(options.cached_experts)),
      layers_(static_cast<size_t>(config.num_hidden_layers)),
      cached_(layers_.size() * static_cast<size_t>(config.num_local_experts)) {
  const size_t most = places_ + static_cast<size_t>(config.num_experts_per_tok);
  for (Layer& layer : layers_) layer.recent.reserve(most);  // so that decoding takes no memory
}

Preference CachePrior::preference(int layer) {
  const Layer& of = layers_[layer];
  const double range = of.tokens == 0 ? 0 : of.ranges / static_cast<double>(of.tokens);
  return {cached(layer), static_cast<float>(strength_ * range), always_top_};
}

void CachePrior::choose(int layer, const float* logits, const float* bias, const int* forced, float* scores,
                        int* experts, float* weights) {
  const auto [smallest, largest] = std::minmax_element(logits, logits + config_.num_local_experts);
  const double range = static_cast<double>(*largest) - *smallest;
  if (std::isfinite(range)) {
    layers_[layer].ranges += range;
    ++layers_[layer].tokens;
  }
  const Preference preferred = preference(layer);
  choose_experts(config_, logits, bias, forced, scores, experts, weights, &preferred);
  if (is_imitated()) use(layer, experts);
}

// The chosen experts become the ones used last, the best of them at the very last, and the cache keeps what fits.
void CachePrior::use(int layer, const int* experts) {
  std::vector<int>& recent = layers_[layer].recent;
  uint8_t* is_cached = cached(layer);
  for (int slot = config_.num_experts_per_tok - 1; slot >= 0; --slot) {
    const int expert = experts[slot];
    ++(is_cached[expert] != 0 ? hits_ : misses_);
    const auto old = std::find(recent.begin(), recent.end(), expert);
    if (old != recent.end()) recent.erase(old);
    recent.insert(recent.begin(), expert);
  }
  if (recent.size() > places_) recent.resize(places_);
  std::fill_n(is_cached, config_.num_local_experts, uint8_t{0});
  for (const int expert : recent) is_cached[expert] = 1;
}

}  // namespace mobilemoe
