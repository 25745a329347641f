// The C API as an app would call it, on the bundled nano model.
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <thread>

#include "api_scene.h"
#include "fork.h"

TEST(api_describes_the_model_and_the_machine) {
  const EnginePointer engine = open_nano();
  const mm_info info = mm_describe(engine.get());
  CHECK_EQ(info.vocab_size, 16384);
  CHECK_EQ(info.layers, 8);
  CHECK_EQ(info.context, 2048);
  CHECK_EQ(info.active_experts, 4);
  CHECK_EQ(info.threads, 2);
  CHECK(info.file_bytes > 10'000'000);
  CHECK(std::strlen(info.isa) > 0);
  CHECK(mm_instruction_sets()[0] != nullptr);
  CHECK(std::strchr(mm_version(), '.') != nullptr);
}

TEST(api_gives_the_same_logits_for_a_prompt_at_once_and_token_by_token) {
  const EnginePointer engine = open_nano();
  const SequencePointer whole = new_sequence(engine);
  const SequencePointer pieces = new_sequence(engine, 16);
  const std::vector<float> wanted = forward(engine, whole, kPrompt);
  std::vector<float> got;
  for (const int32_t token : kPrompt) got = forward(engine, pieces, {token});
  CHECK(wanted == got);
  CHECK_EQ(mm_sequence_length(whole.get()), static_cast<int32_t>(kPrompt.size()));
}

TEST(api_continues_copies_truncated_and_saved_sequences_alike) {
  const EnginePointer engine = open_nano();
  const SequencePointer first = new_sequence(engine);
  forward(engine, first, kPrompt);
  const SequencePointer copy = new_sequence(engine);
  CHECK_EQ(mm_sequence_copy(copy.get(), first.get(), 4), MM_OK);
  const std::string path = (std::filesystem::temp_directory_path() / "mobilemoe-test-api.session").string();
  CHECK_EQ(mm_sequence_truncate(first.get(), 4), MM_OK);
  CHECK_EQ(mm_sequence_save(engine.get(), first.get(), path.c_str()), MM_OK);
  const SequencePointer loaded = new_sequence(engine);
  CHECK_EQ(mm_sequence_load(engine.get(), loaded.get(), path.c_str()), MM_OK);
  std::filesystem::remove(path);
  CHECK_EQ(mm_sequence_length(loaded.get()), 4);
  std::vector<int32_t> tokens(6, -1);
  CHECK_EQ(mm_sequence_tokens(loaded.get(), tokens.data(), 6), 4);
  CHECK(tokens == std::vector<int32_t>({16378, 791, 640, 300, -1, -1}));
  CHECK_EQ(mm_sequence_tokens(loaded.get(), tokens.data(), 2), 2);
  const std::vector<float> wanted = forward(engine, first, {99, 100});
  CHECK(forward(engine, copy, {99, 100}) == wanted);
  CHECK(forward(engine, loaded, {99, 100}) == wanted);
}

TEST(api_says_how_much_memory_keys_and_values_fill) {
  const EnginePointer engine = open_nano();
  CHECK_EQ(mm_kv_bytes(engine.get(), 0), 0u);
  CHECK_EQ(mm_kv_bytes(engine.get(), 1), 8u * 3 * (64 * 140 + 4096));
  CHECK_EQ(mm_kv_bytes(engine.get(), 64), mm_kv_bytes(engine.get(), 1));
  CHECK_EQ(mm_kv_bytes(engine.get(), 2048), 8u * 3 * (2048 * 140 + 4096));
}

TEST(api_steps_give_the_same_tokens_with_guesses_and_without) {
  const EnginePointer engine = open_nano();
  std::vector<int32_t> prompt;
  for (int i = 0; i < 60; ++i) prompt.push_back(kPrompt[static_cast<size_t>(i) % kPrompt.size()]);
  mm_sampling sampling = mm_greedy();
  for (const double temperature : {0.0, 0.6}) {
    sampling.temperature = temperature;
    sampling.repetition_penalty = temperature > 0 ? 1.02 : 1;
    std::vector<std::vector<int32_t>> made;
    for (int how = -1; how <= MM_SPECULATE_LOOKUP; ++how) {
      const SequencePointer sequence = new_sequence(engine);
      mm_text text = {};
      text.sequence = sequence.get();
      CHECK_EQ(mm_sampler_new(&sampling, mm_describe(engine.get()).vocab_size, &text.sampler), MM_OK);
      CHECK_EQ(mm_sampler_see(text.sampler, prompt.data(), 60), MM_OK);
      if (how >= 0) {
        CHECK_EQ(mm_speculation_new(engine.get(), static_cast<mm_speculate>(how), &text.speculation), MM_OK);
      }
      std::vector<int32_t> tokens = prompt, all = prompt;
      while (all.size() < 140) {
        text.tokens = tokens.data();
        text.count = static_cast<int32_t>(tokens.size());
        CHECK_EQ(mm_step(engine.get(), &text, 1), MM_OK);
        all.insert(all.end(), text.chosen, text.chosen + text.chosen_count);
        tokens = {all.back()};
        CHECK_EQ(mm_sequence_length(sequence.get()), static_cast<int32_t>(all.size()) - 1);
      }
      all.resize(140);
      std::vector<int32_t> held(139);
      mm_sequence_tokens(sequence.get(), held.data(), 139);
      CHECK(std::equal(held.begin(), held.end(), all.begin()));
      made.push_back(all);
      mm_speculation_free(text.speculation);
      mm_sampler_free(text.sampler);
    }
    CHECK(made[0] == made[1] && made[0] == made[2]);
  }
  const mm_drafts drafts = mm_count_drafts(engine.get());
  CHECK(drafts.passes > 0 && drafts.proposed >= drafts.passes && drafts.accepted > 0);
}

TEST(api_scores_are_the_log_softmax_of_the_logits) {
  const EnginePointer engine = open_nano();
  const SequencePointer one = new_sequence(engine);
  const SequencePointer two = new_sequence(engine);
  const std::vector<float> logits = forward(engine, one, kPrompt, 2);
  const size_t vocab_size = logits.size() / 2;
  const int32_t targets[] = {500, 0};
  mm_score scores[2];
  const mm_request request = request_of(two, kPrompt, 2);
  CHECK_EQ(mm_score_targets(engine.get(), &request, 1, targets, scores), MM_OK);
  for (size_t row = 0; row < 2; ++row) {
    double sum = 0;
    for (size_t i = 0; i < vocab_size; ++i) sum += std::exp(static_cast<double>(logits[row * vocab_size + i]));
    const auto target = static_cast<size_t>(targets[row]);
    CHECK_NEAR(scores[row].logprob, static_cast<double>(logits[row * vocab_size + target]) - std::log(sum), 1e-4);
  }
}

TEST(api_samples_the_likeliest_token_without_temperature) {
  const mm_sampling greedy = mm_greedy();
  mm_sampler* sampler = nullptr;
  CHECK_EQ(mm_sampler_new(&greedy, 3, &sampler), MM_OK);
  const float logits[] = {1, 5, 2};
  int32_t token = -1;
  CHECK_EQ(mm_sampler_see(sampler, &token, 0), MM_OK);
  CHECK_EQ(mm_sample(sampler, logits, &token), MM_OK);
  CHECK_EQ(token, 1);
  mm_sampler_free(sampler);

  mm_sampling biased = mm_greedy();
  const int32_t bias_token = 2;
  const float bias_value = 10;
  biased.bias_tokens = &bias_token;
  biased.bias_values = &bias_value;
  biased.bias_count = 1;
  CHECK_EQ(mm_sampler_new(&biased, 3, &sampler), MM_OK);
  CHECK_EQ(mm_sample(sampler, logits, &token), MM_OK);
  CHECK_EQ(token, 2);
  mm_sampler_free(sampler);
}

TEST(api_copies_a_sequence_into_itself) {
  const EnginePointer engine = open_nano();
  const SequencePointer sequence = new_sequence(engine);
  const SequencePointer copy = new_sequence(engine);
  forward(engine, sequence, kPrompt);
  CHECK_EQ(mm_sequence_copy(copy.get(), sequence.get(), 4), MM_OK);
  CHECK_EQ(mm_sequence_copy(sequence.get(), sequence.get(), 4), MM_OK);
  CHECK_EQ(mm_sequence_length(sequence.get()), 4);
  CHECK(forward(engine, sequence, {99}) == forward(engine, copy, {99}));
  check_refused(mm_sequence_copy(sequence.get(), sequence.get(), 6), "6");
}

TEST(api_serves_a_forked_child_too) {
  EnginePointer engine = open_nano();
  SequencePointer sequence = new_sequence(engine);
  const std::vector<float> wanted = forward(engine, sequence, kPrompt);
  const int status = mobilemoe::test::status_of_child([&] {
    const bool is_same = forward(engine, new_sequence(engine), kPrompt) == wanted;
    sequence.reset();
    engine.reset();
    return is_same;
  });
  CHECK_EQ(status, 0);
}

TEST(api_keeps_the_sequences_of_two_engines_apart) {
  const EnginePointer one = open_nano();
  const EnginePointer two = open_nano();
  const SequencePointer sequence = new_sequence(one);
  const SequencePointer other = new_sequence(two);
  std::vector<float> logits(16384);
  const mm_request request = request_of(sequence, kPrompt, 1);
  check_refused(mm_forward(two.get(), &request, 1, logits.data()), "another engine");
  check_refused(mm_sequence_copy(other.get(), sequence.get(), 0), "two engines");
  check_refused(mm_sequence_save(two.get(), sequence.get(), "x"), "another engine");
  check_refused(mm_sequence_load(two.get(), sequence.get(), "x"), "another engine");
}

TEST(api_takes_and_checks_options_of_routing) {
  mm_options options = mm_default_options();
  mm_engine* opened = nullptr;
  options.capacity = 1.5;
  check_refused(mm_open(MOBILEMOE_NANO, &options, &opened), "capacity is 1.5");
  options.capacity = 0.2;
  options.experts_per_token = 5;
  check_refused(mm_open(MOBILEMOE_NANO, &options, &opened), "experts_per_token is 5");
  options.experts_per_token = 2;
  options.cache_prior = 0.3;
  check_refused(mm_open(MOBILEMOE_NANO, &options, &opened), "without max_memory");
  options.cache_prior = 0;
  CHECK_EQ(mm_open(MOBILEMOE_NANO, &options, &opened), MM_OK);
  const EnginePointer fewer(opened, mm_close), whole = open_nano();
  CHECK(forward(fewer, new_sequence(fewer), kPrompt) != forward(whole, new_sequence(whole), kPrompt));
  CHECK_EQ(mm_describe(fewer.get()).active_experts, 2);
  mm_speculation* speculation = nullptr;
  check_refused(mm_speculation_new(fewer.get(), MM_SPECULATE_AUTO, &speculation), "guesses would change the text");
}

TEST(api_computes_the_same_within_a_limit_of_memory_and_refuses_one_that_is_too_low) {
  const std::string file = std::filesystem::temp_directory_path() / ("mobilemoe-api-" + std::to_string(getpid()));
  CHECK_EQ(mm_repack(MOBILEMOE_NANO, file.c_str()), MM_OK);
  mm_options options = mm_default_options();
  mm_engine* opened = nullptr;
  options.max_memory = 1000;
  check_refused(mm_open(file.c_str(), &options, &opened), "max_memory is 1000 bytes");
  check_refused(mm_open(MOBILEMOE_NANO, &options, &opened), "needs an engine file");
  options.max_memory = uint64_t{1} << 40;
  CHECK_EQ(mm_open(file.c_str(), &options, &opened), MM_OK);
  std::filesystem::remove(file);  // what is open stays
  const EnginePointer capped(opened, mm_close), whole = open_nano();
  CHECK(forward(capped, new_sequence(capped), kPrompt) == forward(whole, new_sequence(whole), kPrompt));
}

TEST(api_errors_belong_to_the_thread_that_made_them) {
  check_refused(mm_sequence_truncate(nullptr, 0), "sequence is a null pointer");
  std::string elsewhere = "unset";
  std::thread([&] { elsewhere = mm_last_error(); }).join();
  CHECK_EQ(elsewhere, "");
}
