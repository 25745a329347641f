// Layers of random INT4 weights, with the same weights in float64 to check against.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/half.h"
#include "model/model.h"

namespace mobilemoe::exact {

using Doubles = std::vector<double>;
using Floats = std::vector<float>;

inline size_t size(int count) { return static_cast<size_t>(count); }

inline Floats normal(int count, float deviation, std::mt19937& random) {
  std::normal_distribution<float> distribution(0, deviation);
  Floats values(size(count));
  for (float& value : values) value = distribution(random);
  return values;
}

// Normal weights, rounded to INT4 by groups along the axis, in the order of matrix.h.
struct ExactMatrix {
  std::vector<uint8_t> bytes;
  Matrix matrix;
  Doubles weights;  // [outputs][inputs]: nibble times scale

  ExactMatrix(int outputs, int inputs, Axis axis, float deviation, std::mt19937& random)
      : bytes(Matrix::bytes(outputs, inputs)), weights(size(outputs) * size(inputs)) {
    matrix = {bytes.data(), outputs, inputs, axis};
    const Floats drawn = normal(outputs * inputs, deviation, random);
    const bool along_inputs = axis == Axis::in;
    const int lines = along_inputs ? outputs : inputs, length = along_inputs ? inputs : outputs;
    for (int line = 0; line < lines; ++line) {
      for (int first = 0; first < length; first += kGroup) {
        const auto output = [&](int i) { return along_inputs ? line : first + i; };
        const auto input = [&](int i) { return along_inputs ? first + i : line; };
        float largest = 0;
        for (int i = 0; i < kGroup; ++i) {
          largest = std::max(largest, std::fabs(drawn[size(output(i) * inputs + input(i))]));
        }
        const uint16_t stored = float_to_half(largest / 7.5f);
        const float scale = half_to_float(stored);
        put_scale(output(0), input(0), stored);
        for (int i = 0; i < kGroup; ++i) {
          const size_t at = size(output(i) * inputs + input(i));
          const int q = static_cast<int>(std::clamp(std::rint(drawn[at] / scale), -8.0f, 7.0f));
          put_nibble(output(i), input(i), q);
          weights[at] = q * static_cast<double>(scale);
        }
      }
    }
  }
  ExactMatrix(const ExactMatrix&) = delete;
  ExactMatrix& operator=(const ExactMatrix&) = delete;

  template <class T>
  Doubles times(const T* x) const {
    Doubles y(size(matrix.outputs));
    for (size_t output = 0; output < y.size(); ++output) {
      const double* row = &weights[output * size(matrix.inputs)];
      for (int i = 0; i < matrix.inputs; ++i) y[output] += row[i] * static_cast<double>(x[i]);
    }
    return y;
  }

 private:
  void put_nibble(int output, int input, int q) {
    const size_t at = size(input / 32 * 256 + input % 32 / 8 * 64 + output % 16 * 4 + input % 4);
    uint8_t& byte = bytes[size(static_cast<int>(matrix.nibbles(output / kPanel) - matrix.data)) + at];
    byte = static_cast<uint8_t>(byte | (q + 8) << (input / 4 % 2 * 4));
  }
  void put_scale(int output, int input, uint16_t scale) {
    const int at = matrix.axis == Axis::in ? input / 32 * 16 + output % 16 : input;
    const auto* scales = reinterpret_cast<const uint8_t*>(matrix.scales(output / kPanel));
    std::memcpy(bytes.data() + (scales - matrix.data) + 2 * at, &scale, 2);
  }
};

struct ExactFfn {
  ExactMatrix gate_up, down;

  ExactFfn(int hidden, int width, Axis axis, std::mt19937& random)
      : gate_up(2 * width, hidden, axis, 1 / std::sqrt(static_cast<float>(hidden)), random),
        down(hidden, width, axis, 1 / std::sqrt(static_cast<float>(width)), random) {}

  Ffn ffn() const { return {gate_up.matrix, down.matrix, down.matrix.inputs}; }

  Doubles run(const Doubles& x) const {
    const Doubles both = gate_up.times(x.data());
    Doubles units(size(down.matrix.inputs));
    for (size_t i = 0; i < units.size(); ++i) {
      const double gate = both[i / 32 * 64 + i % 32], up = both[i / 32 * 64 + 32 + i % 32];
      units[i] = gate / (1 + std::exp(-gate)) * up;
    }
    return down.times(units.data());
  }
};

// The feed-forward half of a layer; without experts it is dense, without a shared width there is no shared expert.
class ExactLayer {
 public:
  ExactLayer(const Config& config, unsigned seed) : config_(config) {
    std::mt19937 random(seed);
    const int hidden = config.hidden_size, experts = config.is_moe ? config.num_local_experts : 0;
    const int padded = round_up(experts, kPanel);
    norm_ = normal(hidden, 0.1f, random);
    for (float& weight : norm_) weight += 1;
    router_ = normal(hidden * padded, 1 / std::sqrt(static_cast<float>(hidden)), random);
    bias_.assign(size(padded), 0.0f);
    if (config.router_score == RouterScore::sigmoid) bias_ = normal(padded, 0.1f, random);
    weights_.post_attention_norm = norm_.data();
    weights_.router = router_.data();
    weights_.expert_bias = bias_.data();
    for (int e = 0; e < experts; ++e) {
      experts_.push_back(std::make_unique<ExactFfn>(hidden, config.intermediate_size, config.expert_axis, random));
      weights_.experts.push_back(experts_.back()->ffn());
    }
    const int shared = config.is_moe ? config.intermediate_size_mlp : config.intermediate_size;
    if (shared == 0) return;
    shared_ = std::make_unique<ExactFfn>(hidden, shared, Axis::in, random);
    weights_.shared = shared_->ffn();
  }

  const LayerWeights& weights() const { return weights_; }

  // FFN(RMSNorm(x)) and the experts chosen, or by the experts that are forced.
  Doubles run(const float* x, std::vector<int>* experts, const int* forced = nullptr) const {
    const size_t hidden = size(config_.hidden_size);
    double squares = 0;
    for (size_t i = 0; i < hidden; ++i) squares += static_cast<double>(x[i]) * static_cast<double>(x[i]);
    const double root = std::sqrt(squares / static_cast<double>(hidden) + config_.rms_norm_eps);
    Doubles normed(hidden), y(hidden);
    for (size_t i = 0; i < hidden; ++i) normed[i] = static_cast<double>(x[i]) / root * static_cast<double>(norm_[i]);
    const auto add = [&](const ExactFfn& ffn, double weight) {
      const Doubles part = ffn.run(normed);
      for (size_t i = 0; i < hidden; ++i) y[i] += weight * part[i];
    };
    if (shared_ != nullptr) add(*shared_, 1);
    if (experts_.empty()) return y;
    const Doubles scores = score(normed);
    if (forced == nullptr) {
      *experts = choose(scores);
    } else {
      experts->assign(forced, forced + config_.num_experts_per_tok);
    }
    double total = 0;
    for (const int e : *experts) total += scores[size(e)];
    for (const int e : *experts) {
      add(*experts_[size(e)], scores[size(e)] / (config_.norm_topk_prob ? total : 1) * config_.routed_scaling_factor);
    }
    return y;
  }

 private:
  Doubles score(const Doubles& normed) const {
    const bool is_sigmoid = config_.router_score == RouterScore::sigmoid;
    Doubles scores(experts_.size());
    double total = 0;
    for (size_t e = 0; e < scores.size(); ++e) {
      double logit = 0;
      for (size_t i = 0; i < normed.size(); ++i) {
        logit += normed[i] * static_cast<double>(router_[i * bias_.size() + e]);
      }
      total += scores[e] = is_sigmoid ? 1 / (1 + std::exp(-logit)) : std::exp(logit);
    }
    for (double& s : scores) s /= is_sigmoid ? 1 : total;
    return scores;
  }

  std::vector<int> choose(const Doubles& scores) const {
    std::vector<int> order(scores.size());
    for (size_t e = 0; e < order.size(); ++e) order[e] = static_cast<int>(e);
    const auto rank = [&](int e) { return scores[size(e)] + static_cast<double>(bias_[size(e)]); };
    std::sort(order.begin(), order.end(), [&](int a, int b) { return rank(a) > rank(b); });
    order.resize(size(config_.num_experts_per_tok));
    return order;
  }

  Config config_;
  Floats norm_, router_, bias_;
  std::vector<std::unique_ptr<ExactFfn>> experts_;
  std::unique_ptr<ExactFfn> shared_;
  LayerWeights weights_;
};

}  // namespace mobilemoe::exact
