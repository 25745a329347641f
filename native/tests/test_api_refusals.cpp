// What the C API refuses, each with a sentence and with nothing changed.
#include "api_scene.h"

TEST(api_refuses_steps_that_cannot_mean_anything) {
  const EnginePointer engine = open_nano(), other = open_nano();
  const SequencePointer sequence = new_sequence(engine), second = new_sequence(engine), strange = new_sequence(other);
  const mm_sampling sampling = mm_greedy();
  mm_sampler* sampler = nullptr;
  mm_speculation* speculation = nullptr;
  CHECK_EQ(mm_sampler_new(&sampling, 16384, &sampler), MM_OK);
  CHECK_EQ(mm_speculation_new(other.get(), MM_SPECULATE_AUTO, &speculation), MM_OK);
  const int seven = 7;  // C may store it in the enum
  mm_speculate how;
  std::memcpy(&how, &seven, sizeof how);
  check_refused(mm_speculation_new(engine.get(), how, &speculation), "how is 7");
  const mm_text good = {sequence.get(), kPrompt.data(), 6, sampler, nullptr, {}, 0};
  mm_text text = good;
  check_refused(mm_step(engine.get(), &text, 0), "count of texts is 0");
  text.sequence = strange.get();
  check_refused(mm_step(engine.get(), &text, 1), "another engine");
  text = good;
  text.speculation = speculation;
  check_refused(mm_step(engine.get(), &text, 1), "another engine");
  text = good;
  text.sampler = nullptr;
  check_refused(mm_step(engine.get(), &text, 1), "null pointer");
  text = good;
  text.count = 0;
  check_refused(mm_step(engine.get(), &text, 1), "no token ids");
  mm_text two[] = {good, good};
  two[1].sequence = second.get();
  check_refused(mm_step(engine.get(), two, 2), "same sampler");
  CHECK_EQ(mm_sequence_length(sequence.get()), 0);
  mm_speculation_free(speculation);
  mm_sampler_free(sampler);
}

TEST(api_refuses_null_pointers_with_a_sentence) {
  const EnginePointer engine = open_nano();
  const SequencePointer sequence = new_sequence(engine);
  const mm_options options = mm_default_options();
  const mm_sampling greedy = mm_greedy();
  mm_engine* no_engine = nullptr;
  mm_sampler* no_sampler = nullptr;
  const mm_request request = request_of(sequence, kPrompt, 1);
  check_refused(mm_repack(nullptr, "x"), "folder is a null pointer");
  check_refused(mm_repack("x", nullptr), "engine_file is a null pointer");
  check_refused(mm_open(nullptr, &options, &no_engine), "path is a null pointer");
  check_refused(mm_open(MOBILEMOE_NANO, nullptr, &no_engine), "options is a null pointer");
  check_refused(mm_open(MOBILEMOE_NANO, &options, nullptr), "engine is a null pointer");
  check_refused(mm_sequence_new(nullptr, 0, nullptr), "engine is a null pointer");
  check_refused(mm_sequence_new(engine.get(), 0, nullptr), "sequence is a null pointer");
  check_refused(mm_sequence_truncate(nullptr, 0), "sequence is a null pointer");
  check_refused(mm_sequence_copy(sequence.get(), nullptr, 0), "from is a null pointer");
  check_refused(mm_sequence_save(engine.get(), sequence.get(), nullptr), "path is a null pointer");
  check_refused(mm_sequence_load(engine.get(), nullptr, "x"), "sequence is a null pointer");
  check_refused(mm_forward(nullptr, &request, 1, nullptr), "engine is a null pointer");
  check_refused(mm_forward(engine.get(), nullptr, 1, nullptr), "requests is a null pointer");
  check_refused(mm_forward(engine.get(), &request, 1, nullptr), "logits is a null pointer");
  check_refused(mm_score_targets(engine.get(), &request, 1, nullptr, nullptr), "targets is a null pointer");
  check_refused(mm_sampler_new(nullptr, 3, &no_sampler), "sampling is a null pointer");
  check_refused(mm_sampler_new(&greedy, 3, nullptr), "sampler is a null pointer");
  check_refused(mm_sample(nullptr, nullptr, nullptr), "sampler is a null pointer");
  check_refused(mm_sampler_see(nullptr, nullptr, 0), "sampler is a null pointer");
  mm_close(nullptr);
  mm_sequence_free(nullptr);
  mm_sampler_free(nullptr);
  CHECK_EQ(mm_sequence_length(nullptr), 0);
  CHECK_EQ(mm_sequence_tokens(nullptr, nullptr, 1), 0);
  CHECK_EQ(mm_kv_bytes(nullptr, 1), 0u);
  CHECK_EQ(mm_describe(nullptr).vocab_size, 0);
  CHECK_EQ(mm_sequence_length(sequence.get()), 0);  // nothing was appended by all that
}

TEST(api_refuses_calls_that_mean_nothing_and_changes_nothing) {
  const EnginePointer engine = open_nano();
  const SequencePointer sequence = new_sequence(engine, 8);
  std::vector<float> logits(16384);
  const auto refused = [&](const std::vector<int32_t>& tokens, int32_t outputs, const char* words,
                           mm_status wanted = MM_USAGE) {
    const mm_request request = request_of(sequence, tokens, outputs);
    check_refused(mm_forward(engine.get(), &request, 1, logits.data()), words, wanted);
    CHECK_EQ(mm_sequence_length(sequence.get()), 0);
  };
  const std::vector<int32_t> nine(9, 1);
  refused({16384}, 1, "16384");
  refused({-1}, 1, "-1");
  refused({1}, 2, "outputs is 2");
  refused({1}, -1, "outputs is -1");
  refused(nine, 1, "8", MM_FULL);
  const mm_request empty = {sequence.get(), nine.data(), 0, 0};
  check_refused(mm_forward(engine.get(), &empty, 1, logits.data()), "at least one");
  check_refused(mm_forward(engine.get(), &empty, 0, logits.data()), "count of requests is 0");
  const mm_request once = {sequence.get(), nine.data(), 1, 0};
  const mm_request twice[] = {once, once};
  check_refused(mm_forward(engine.get(), twice, 2, logits.data()), "same sequence");
  check_refused(mm_sequence_truncate(sequence.get(), 5), "5");
  check_refused(mm_sequence_truncate(sequence.get(), -1), "-1");
  mm_sequence* none = nullptr;
  check_refused(mm_sequence_new(engine.get(), -3, &none), "-3");
  CHECK_EQ(none, nullptr);
}

TEST(api_refuses_more_outputs_than_there_is_room_for_before_it_takes_memory_for_them) {
  const EnginePointer engine = open_nano();
  const SequencePointer one = new_sequence(engine, 8);
  const SequencePointer two = new_sequence(engine, 8);
  const SequencePointer three = new_sequence(engine, 8);
  constexpr int32_t kMost = INT32_MAX;
  // The arrays are shorter than the counts say: the sequence's capacity must be checked before they are read.
  const mm_request requests[] = {{one.get(), kPrompt.data(), kMost, kMost},
                                 {two.get(), kPrompt.data(), kMost, kMost},
                                 {three.get(), kPrompt.data(), kMost, kMost}};
  const int32_t target = 0;
  mm_score score;
  float logit;
  for (const int32_t count : {1, 2, 3}) {
    check_refused(mm_score_targets(engine.get(), requests, count, &target, &score), "2147483647 tokens", MM_FULL);
    check_refused(mm_forward(engine.get(), requests, count, &logit), "2147483647 tokens", MM_FULL);
  }
}

TEST(api_names_the_option_that_is_wrong_when_an_engine_is_opened) {
  mm_engine* engine = nullptr;
  mm_options options = mm_default_options();
  check_refused(mm_open("/no/such/model", &options, &engine), "/no/such/model", MM_FILE);
  options.threads = -1;
  check_refused(mm_open(MOBILEMOE_NANO, &options, &engine), "threads is -1");
  options = mm_default_options();
  const int beyond = 9;
  std::memcpy(&options.kv, &beyond, sizeof(options.kv));
  check_refused(mm_open(MOBILEMOE_NANO, &options, &engine), "kv is 9");
  CHECK_EQ(engine, nullptr);
}

TEST(api_refuses_samplers_that_mean_nothing) {
  mm_sampler* sampler = nullptr;
  mm_sampling sampling = mm_greedy();
  sampling.top_p = 0;
  check_refused(mm_sampler_new(&sampling, 10, &sampler), "top_p is 0");
  sampling = mm_greedy();
  check_refused(mm_sampler_new(&sampling, 0, &sampler), "vocab_size is 0");
  sampling.bias_count = -1;
  check_refused(mm_sampler_new(&sampling, 10, &sampler), "bias_count is -1");
  sampling.bias_count = 1;
  check_refused(mm_sampler_new(&sampling, 10, &sampler), "bias_tokens is a null pointer");
  CHECK_EQ(sampler, nullptr);
}
