#include <cmath>
#include <string>

#include "check.h"
#include "compute/rope.h"
#include "files/parse_config.h"
#include "tiny_checkpoint.h"

namespace mobilemoe {
namespace {

using tiny::config_json;

Config with(const std::map<std::string, std::string>& changes) { return parse_config(config_json(changes)); }

TEST(config_reads_a_file_of_the_family) {
  const Config config = with({{"rms_norm_eps", "1e-06"}, {"rope_theta", "10000"}, {"attention_scale", "0.1"}});
  CHECK_EQ(config.vocab_size, 50);
  CHECK_EQ(config.hidden_size, 64);
  CHECK_EQ(config.num_hidden_layers, 2);
  CHECK_EQ(config.q_width(), 32);
  CHECK_EQ(config.kv_width(), 8);
  CHECK_EQ(config.intermediate_size_mlp, 96);
  CHECK_EQ(config.rms_norm_eps, 1e-6);
  CHECK_EQ(config.rope_theta, 10000.0);
  CHECK_EQ(config.attention_scale, 0.1);
  CHECK(config.is_moe && config.is_quantized && config.has_expert_bias());
  CHECK(config.expert_axis == Axis::out);
  CHECK(config.eos_token_id == (std::vector<int>{7, 9}));
}

TEST(config_fills_in_the_familys_defaults) {
  const Config config = with({{"intermediate_size_mlp", ""}, {"quantization", ""}, {"eos_token_id", ""}});
  CHECK_EQ(config.max_position_embeddings, 8192);
  CHECK_EQ(config.intermediate_size_mlp, 0);
  CHECK_EQ(config.routed_scaling_factor, 2.5);
  CHECK_EQ(config.rms_norm_eps, 1e-5);
  CHECK_EQ(config.rope_theta, 500000.0);
  CHECK_NEAR(config.attention_scale, 1 / std::sqrt(8.0), 1e-15);
  CHECK(config.norm_topk_prob && config.tie_word_embeddings && !config.has_rope_scaling && !config.is_quantized);
  CHECK(config.router_score == RouterScore::sigmoid);
  CHECK(config.qk_norm == QkNorm::head);
  CHECK(config.eos_token_id.empty());
  CHECK(config.window == (std::vector<int>{0, 0}));
}

TEST(config_reads_the_words_for_either_group_axis) {
  for (const char* words : {"in", "in (last dim of [E, out, in])"}) {
    const std::string quantization = "{\"expert_group_axis\": \"" + std::string(words) + "\"}";
    CHECK(with({{"quantization", quantization}}).expert_axis == Axis::in);
  }
  for (const char* words : {"out", "out (last dim of [E, in, out])"}) {
    const std::string quantization = "{\"expert_group_axis\": \"" + std::string(words) + "\"}";
    CHECK(with({{"quantization", quantization}}).expert_axis == Axis::out);
  }
  CHECK(with({{"quantization", "{}"}}).expert_axis == Axis::out);
  CHECK(with({{"quantization", "{}"}}).is_quantized);
  CHECK(!with({{"quantization", "null"}}).is_quantized);
}

TEST(config_reads_one_end_token_or_a_list_of_them) {
  CHECK(with({{"eos_token_id", "3"}}).eos_token_id == std::vector<int>{3});
  CHECK(with({{"eos_token_id", "[]"}}).eos_token_id.empty());
  CHECK(with({{"eos_token_id", "null"}}).eos_token_id.empty());
  CHECK(with({{"eos_token_id", "[128001]"}}).eos_token_id == std::vector<int>{128001});  // beyond the vocabulary
}

TEST(config_reads_the_rope_of_transformers_5) {
  const std::string llama3 =
      R"("rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 4096, "low_freq_factor": 1,)"
      R"( "high_freq_factor": 4)";
  const std::string flat = "{" + llama3 + R"(, "rope_theta": 10000})";
  for (const std::string& text : {flat, R"({"full_attention": )" + flat + "}"}) {
    const Config config = with({{"rope_parameters", text}});
    CHECK_EQ(config.rope_theta, 10000.0);
    CHECK(config.has_rope_scaling);
    CHECK_EQ(config.rope_scaling.factor, 8.0);
    CHECK_EQ(config.rope_scaling.high_freq_factor, 4.0);
  }
  const Config older = with({{"rope_parameters", flat}, {"rope_theta", "10000"}, {"rope_scaling", "{" + llama3 + "}"}});
  CHECK_EQ(older.rope_theta, 10000.0);
  CHECK_THROWS(with({{"rope_parameters", flat}, {"rope_theta", "500000"}}), ErrorCode::config);
}

TEST(config_passes_over_what_changes_nothing) {
  const Config config = with({{"mlp_bias", "false"},
                              {"n_group", "1"},
                              {"logit_scale", "1.0"},
                              {"final_logit_softcapping", "null"},
                              {"moe_intermediate_size", "64"},
                              {"something_else", "7"}});
  CHECK_EQ(config.hidden_size, 64);
}

TEST(config_gives_sliding_layers_their_window) {
  const Config config = with({{"layer_types", R"(["full_attention", "sliding_attention"])"}, {"sliding_window", "16"}});
  CHECK(config.window == (std::vector<int>{0, 16}));
}

TEST(config_reads_models_outside_the_family) {
  const Config dense = with(tiny::kDense);
  CHECK(!dense.is_moe && !dense.has_expert_bias());
  CHECK(dense.qk_norm == QkNorm::head_weight);
  const Config olmoe = with(tiny::kOlmoe);
  CHECK(olmoe.router_score == RouterScore::softmax);
  CHECK(olmoe.qk_norm == QkNorm::projection_weight);
  CHECK(!olmoe.has_expert_bias() && !olmoe.tie_word_embeddings);
  CHECK(with({{"use_qk_norm", "false"}}).qk_norm == QkNorm::none);
}

struct Fault {
  const char* field;
  const char* value;
  const char* says;
};

TEST(config_faults_name_field_value_and_rule) {
  const Fault faults[] = {
      {"vocab_size", "", "vocab_size is missing"},
      {"vocab_size", "0", "vocab_size is 0, but must be within 1 and 16777216"},
      {"vocab_size", "16777217", "vocab_size is 16777217"},
      {"hidden_size", "-64", "hidden_size is -64"},
      {"hidden_size", "64.0", "hidden_size is 64.0, not a whole number"},
      {"hidden_size", "\"64\"", "hidden_size is \"64\", not a whole number"},
      {"hidden_size", "true", "hidden_size is true, not a whole number"},
      {"hidden_size", "null", "hidden_size is null"},
      {"hidden_size", "99999999999999999999", "hidden_size is 99999999999999999999"},
      {"num_hidden_layers", "0", "num_hidden_layers is 0"},
      {"num_key_value_heads", "3", "num_attention_heads is 4, not a multiple of num_key_value_heads 3"},
      {"head_dim", "7", "head_dim is 7, but RoPE needs an even number"},
      {"head_dim", "16777216", "their product"},
      {"num_experts_per_tok", "70", "num_experts_per_tok is 70, but there are only 3 experts"},
      {"num_experts_per_tok", "0", "num_experts_per_tok is 0, but must be positive"},
      {"num_local_experts", "0", "num_local_experts is 0, but must be positive"},
      {"intermediate_size_mlp", "-1", "intermediate_size_mlp is -1"},
      {"ffn_type", "\"dense\"", "ffn_type is dense, so num_local_experts"},
      {"ffn_type", "\"sparse\"", "ffn_type is \"sparse\", not one of moe, dense"},
      {"router_score", "3", "router_score is 3, not one of sigmoid, softmax"},
      {"norm_topk_prob", "1", "norm_topk_prob is 1, neither true nor false"},
      {"routed_scaling_factor", "0", "routed_scaling_factor is 0, but must be positive"},
      {"rms_norm_eps", "-1e-5", "rms_norm_eps is -1e-5, but must be positive"},
      {"rope_theta", "\"x\"", "rope_theta is \"x\", not a number"},
      {"use_qk_norm", "1", "use_qk_norm is 1, neither true nor false"},
      {"qk_norm", "\"both\"", "qk_norm is \"both\""},
      {"layer_types", "[\"full_attention\"]", "layer_types has 1 entries, but num_hidden_layers is 2"},
      {"layer_types", "[\"full_attention\", 1]", "layer_types holds 1"},
      {"layer_types", "[\"full_attention\", \"sliding_attention\"]", "sliding_window is missing"},
      {"sliding_window", "0", "sliding_window is 0"},
      {"no_rope_layers", "[1, 0]", "no_rope_layers is not all 1"},
      {"eos_token_id", "-1", "eos_token_id is -1, not a token id"},
      {"eos_token_id", "[1, true]", "eos_token_id holds true, not a token id"},
      {"eos_token_id", "\"</s>\"", "eos_token_id is \"</s>\", not a list"},
      {"bos_token_id", "-1", "bos_token_id is -1"},
      {"model_type", "\"llama\"", "model_type is \"llama\", but only \"mobilemoe\" is supported"},
      {"hidden_act", "\"gelu\"", "hidden_act is \"gelu\""},
      {"attention_bias", "true", "attention_bias is true"},
      {"interleave_moe_layer_step", "2", "interleave_moe_layer_step is 2, but only 1 is supported"},
      {"quantization", "[]", "quantization is [], not an object"},
      {"quantization", "{\"group_size\": 64}", "quantization.group_size is 64, but only 32 is supported"},
      {"quantization", "{\"symmetric\": false}", "quantization.symmetric is false"},
      {"quantization", "{\"expert_group_axis\": \"up\"}", "quantization.expert_group_axis is \"up\""},
      {"rope_scaling", "7", "rope_scaling is 7, not an object"},
      {"rope_scaling", "{}", "rope_scaling.rope_type is missing"},
      {"rope_scaling", "{\"rope_type\": \"yarn\"}", "rope_scaling.rope_type is \"yarn\""},
      {"rope_scaling", "{\"rope_type\": \"llama3\"}", "rope_scaling.factor is missing"},
      {"rope_parameters", "{\"rope_type\": \"yarn\"}", "rope_parameters.rope_type is \"yarn\""},
      {"rope_parameters", "{\"rope_type\": \"default\"}", "rope_parameters.rope_theta is missing"},
      {"rope_parameters", "{\"full_attention\": null}", "rope_parameters.full_attention is no object"},
      {"mlp_bias", "true", "mlp_bias is true, which changes what a model computes"},
      {"first_k_dense_replace", "1", "first_k_dense_replace is 1, which changes"},
      {"moe_intermediate_size", "65", "moe_intermediate_size is 65, which changes"},
      {"quantization_config", "{\"quant_method\": \"awq\"}", "quantization_config is {"},
      {"sliding_window", "16", "layer_types does not say which layers"},
  };
  for (const Fault& fault : faults) {
    CHECK_THROWS_SAYING(with({{fault.field, fault.value}}), ErrorCode::config, fault.says);
  }
  CHECK_THROWS_SAYING(parse_config("[]"), ErrorCode::config, "the config is [], not an object");
  CHECK_THROWS(parse_config("{"), ErrorCode::config);
}

std::string llama3(const char* low, const char* high) {
  return R"({"rope_type": "llama3", "factor": 16, "original_max_position_embeddings": 8192, "low_freq_factor": )" +
         std::string(low) + ", \"high_freq_factor\": " + high + "}";
}

TEST(rope_frequencies_fall_by_powers_of_theta) {
  const std::vector<double> freq = rope_frequencies(with({{"rope_theta", "10000"}}));
  CHECK_EQ(freq.size(), 4u);
  const double wanted[] = {1, 0.1, 0.01, 0.001};
  for (size_t i = 0; i < 4; ++i) CHECK_NEAR(freq[i], wanted[i], 1e-15);
}

// Fourteen of the published models' 32 frequencies are slowed down by the factor (spec section 2).
TEST(rope_scaling_slows_wavelengths_beyond_the_original_context) {
  std::map<std::string, std::string> changes = {{"head_dim", "64"}};
  const std::vector<double> plain = rope_frequencies(with(changes));
  changes["rope_scaling"] = llama3("1", "1");
  const std::vector<double> scaled = rope_frequencies(with(changes));
  int slowed = 0;
  for (size_t i = 0; i < 32; ++i) {
    const bool is_long = 2 * 3.14159265358979323846 / plain[i] > 8192;
    CHECK_NEAR(scaled[i], is_long ? plain[i] / 16 : plain[i], 1e-18);
    slowed += is_long;
  }
  CHECK_EQ(slowed, 14);
}

TEST(rope_scaling_blends_between_its_two_factors) {
  std::map<std::string, std::string> changes = {{"head_dim", "64"}};
  const std::vector<double> plain = rope_frequencies(with(changes));
  changes["rope_scaling"] = llama3("1", "4");
  const std::vector<double> scaled = rope_frequencies(with(changes));
  int blended = 0;
  for (size_t i = 0; i < 32; ++i) {
    const double turns = 8192 * plain[i] / (2 * 3.14159265358979323846);
    if (turns <= 1 || turns >= 4) continue;
    const double keep = (turns - 1) / 3;
    CHECK_NEAR(scaled[i], keep * plain[i] + (1 - keep) * plain[i] / 16, 1e-18);
    ++blended;
  }
  CHECK(blended > 0);
  CHECK_THROWS_SAYING(with({{"rope_scaling", llama3("4", "1")}}), ErrorCode::config, "low_freq_factor is 4");
  CHECK_THROWS_SAYING(with({{"rope_scaling", llama3("0", "1")}}), ErrorCode::config, "low_freq_factor is 0");
}

}  // namespace
}  // namespace mobilemoe
