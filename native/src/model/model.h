// A model as the engine computes with it: its config and views of its weights.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/expert_source.h"
#include "model/matrix.h"

namespace mobilemoe {

using Fingerprint = std::array<uint8_t, 32>;

// Views of the weights; valid while the Model that holds them lives.
struct LayerWeights {
  int index = 0;                               // of the layer
  const float* input_norm = nullptr;           // [hidden]
  const float* post_attention_norm = nullptr;  // [hidden]
  Matrix qkv;                                  // rows of q, k, v, each part padded to 16
  Matrix o;                                    // [hidden, q_width]
  const float* q_norm = nullptr;               // head_dim or q_width; null unless qk_norm has weights
  const float* k_norm = nullptr;
  const float* router = nullptr;       // [hidden][experts padded to 16]
  const float* expert_bias = nullptr;  // [experts padded to 16]; zeros where the model has none
  std::vector<Ffn> experts;            // empty in a dense model; without data where they come from an ExpertSource
  Ffn shared;                          // width 0: none. In a dense model: the only FFN
};

struct Model {
  Config config;
  std::string config_json;
  Fingerprint fingerprint{};  // of the checkpoint that it was made from
  Fingerprint origin{};       // of the checkpoint that this one was rounded from; its own where it was not
  Matrix embedding;           // [vocab padded to 16, hidden]
  Matrix head;                // the same as `embedding` if tied
  const float* norm = nullptr;
  std::vector<LayerWeights> layers;
  size_t file_bytes = 0;
  std::shared_ptr<const void> storage;                // keeps the weights: a mapped file, or memory
  std::shared_ptr<const ExpertSource> expert_source;  // of the routed experts; null: they are in memory like the rest
};

}  // namespace mobilemoe
