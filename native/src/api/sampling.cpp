// The C API: choosing tokens, and guessing them.
#include <algorithm>

#include "api/handles.h"

using namespace mobilemoe;
using namespace mobilemoe::api;

static_assert(static_cast<int>(Speculate::automatic) == MM_SPECULATE_AUTO);
static_assert(static_cast<int>(Speculate::lookup) == MM_SPECULATE_LOOKUP);
static_assert(static_cast<int>(Speculate::head) == MM_SPECULATE_DRAFT);
static_assert(kMostDrafts == MM_MOST_DRAFTS);

namespace {

Sampling take_sampling(const mm_sampling& given) {
  require(given.bias_count >= 0, "bias_count is " + std::to_string(given.bias_count) + ", but must be 0 or more");
  Sampling sampling;
  sampling.temperature = given.temperature;
  sampling.top_k = given.top_k;
  sampling.top_p = given.top_p;
  sampling.min_p = given.min_p;
  sampling.repetition_penalty = given.repetition_penalty;
  sampling.presence_penalty = given.presence_penalty;
  sampling.frequency_penalty = given.frequency_penalty;
  sampling.seed = given.seed;
  if (given.bias_count > 0) {
    require_pointer(given.bias_tokens, "bias_tokens");
    require_pointer(given.bias_values, "bias_values");
  }
  for (int32_t i = 0; i < given.bias_count; ++i) {
    sampling.logit_bias.emplace_back(given.bias_tokens[i], given.bias_values[i]);
  }
  return sampling;
}

}  // namespace

mm_sampling mm_greedy(void) {
  mm_sampling sampling = {};
  sampling.top_p = 1;
  sampling.repetition_penalty = 1;
  return sampling;
}

mm_status mm_sampler_new(const mm_sampling* sampling, int32_t vocab_size, mm_sampler** sampler) {
  return guarded([&] {
    require_pointer(sampling, "sampling");
    require_pointer(sampler, "sampler");
    *sampler = std::make_unique<mm_sampler>(take_sampling(*sampling), vocab_size).release();
  });
}

void mm_sampler_free(mm_sampler* sampler) { delete sampler; }

mm_status mm_sampler_see(mm_sampler* sampler, const int32_t* tokens, int32_t count) {
  return guarded([&] {
    require_pointer(sampler, "sampler");
    require(count >= 0, "count is " + std::to_string(count) + ", but must be 0 or more");
    if (count > 0) require_pointer(tokens, "tokens");
    sampler->sampler.see(tokens, count);
  });
}

mm_status mm_sample(mm_sampler* sampler, const float* logits, int32_t* token) {
  return guarded([&] {
    require_pointer(sampler, "sampler");
    require_pointer(logits, "logits");
    require_pointer(token, "token");
    *token = sampler->sampler.choose(logits, false, 0).token;
  });
}

mm_status mm_speculation_new(mm_engine* engine, mm_speculate how, mm_speculation** speculation) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(speculation, "speculation");
    const int wanted = number_of(how);
    require(wanted >= MM_SPECULATE_AUTO && wanted <= MM_SPECULATE_DRAFT,
            "how is " + std::to_string(wanted) + ", but must be a value of mm_speculate");
    require(wanted != MM_SPECULATE_DRAFT || engine->engine.has_head(),
            "how is MM_SPECULATE_DRAFT, but the engine has no draft head");
    auto made = std::make_unique<mm_speculation>();
    made->engine = engine;
    made->speculation = engine->engine.new_speculation(static_cast<Speculate>(wanted));
    *speculation = made.release();
  });
}

void mm_speculation_free(mm_speculation* speculation) { delete speculation; }

mm_status mm_step(mm_engine* engine, mm_text* texts, int32_t count) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require(count > 0, "count of texts is " + std::to_string(count) + ", but must be above 0");
    require_pointer(texts, "texts");
    std::vector<Step>& steps = engine->steps;
    steps.resize(static_cast<size_t>(count));
    for (int32_t i = 0; i < count; ++i) {
      const mm_text& text = texts[i];
      require_pointer(text.sequence, "the sequence of a text");
      require(text.sequence->engine == engine, "a text names a sequence of another engine");
      require_pointer(text.tokens, "tokens of a text");
      require_pointer(text.sampler, "the sampler of a text");
      require(text.speculation == nullptr || text.speculation->engine == engine,
              "a text names a speculation of another engine");
      for (int32_t j = 0; j < i; ++j) {
        require(texts[j].sampler != text.sampler, "two texts have the same sampler");
        require(text.speculation == nullptr || texts[j].speculation != text.speculation,
                "two texts have the same speculation");
      }
      steps[i].sequence = text.sequence->sequence.get();
      steps[i].tokens = text.tokens;
      steps[i].count = text.count;
      steps[i].sampler = &text.sampler->sampler;
      steps[i].speculation = text.speculation == nullptr ? nullptr : text.speculation->speculation.get();
    }
    engine->engine.step(steps.data(), count);
    for (int32_t i = 0; i < count; ++i) {
      texts[i].chosen_count = static_cast<int32_t>(steps[i].chosen.size());
      std::copy(steps[i].chosen.begin(), steps[i].chosen.end(), texts[i].chosen);
    }
  });
}
