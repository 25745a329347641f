// The C API over the engine: no exception leaves it.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>

#include "compute/engine.h"
#include "compute/sampler.h"
#include "error.h"
#include "files/draft_file.h"
#include "files/engine_file.h"
#include "files/open_model.h"
#include "files/repack.h"
#include "files/session_file.h"
#include "kernels/dispatch.h"
#include "mobilemoe.h"

using mobilemoe::Engine;
using mobilemoe::EngineOptions;
using mobilemoe::Error;
using mobilemoe::ErrorCode;
using mobilemoe::KvType;
using mobilemoe::Model;
using mobilemoe::Request;
using mobilemoe::Sampler;
using mobilemoe::Sampling;
using mobilemoe::Score;
using mobilemoe::Sequence;
using mobilemoe::Speculate;
using mobilemoe::Speculation;
using mobilemoe::Step;

struct mm_engine {
  mm_engine(Model model, const EngineOptions& options) : engine(std::move(model), options) {}
  Engine engine;
  std::vector<Request> requests;  // kept, so that a step allocates nothing
  std::vector<Score> scores;
  std::vector<Step> steps;
};

struct mm_sequence {
  mm_engine* engine;
  std::unique_ptr<Sequence> sequence;
};

struct mm_sampler {
  mm_sampler(const Sampling& sampling, int vocab_size) : sampler(sampling, vocab_size) {}
  Sampler sampler;
};

struct mm_speculation {
  const mm_engine* engine;
  std::unique_ptr<Speculation> speculation;
};

namespace {

static_assert(static_cast<int>(ErrorCode::usage) == MM_USAGE && static_cast<int>(ErrorCode::numerics) == MM_NUMERICS);
static_assert(static_cast<int>(KvType::int8) == MM_KV_INT8 && static_cast<int>(KvType::f32) == MM_KV_F32);
static_assert(static_cast<int>(Speculate::automatic) == MM_SPECULATE_AUTO);
static_assert(static_cast<int>(Speculate::lookup) == MM_SPECULATE_LOOKUP);
static_assert(static_cast<int>(Speculate::head) == MM_SPECULATE_DRAFT);
static_assert(mobilemoe::kMostDrafts == MM_MOST_DRAFTS);

thread_local char last_error[1024] = "";  // of fixed size, because reporting a lack of memory must not allocate

mm_status fail(mm_status status, const char* message) {
  std::snprintf(last_error, sizeof(last_error), "%s", message);
  return status;
}

template <class Work>
mm_status guarded(const Work& work) noexcept {
  try {
    work();
    return MM_OK;
  } catch (const Error& error) {
    return fail(static_cast<mm_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(MM_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(MM_INTERNAL, error.what());
  } catch (...) {
    return fail(MM_INTERNAL, "an unknown fault of the engine");
  }
}

void require(bool holds, const std::string& message) {
  if (!holds) throw Error(ErrorCode::usage, message);
}

void require_pointer(const void* pointer, const char* name) {
  require(pointer != nullptr, std::string(name) + " is a null pointer");
}

// The number behind an enum's value, read as an int: C may store any number in an enum, which is undefined in C++.
template <class Enum>
int number_of(const Enum& value) {
  int number = 0;
  static_assert(sizeof(number) == sizeof(value));
  std::memcpy(&number, &value, sizeof(number));
  return number;
}

// Fills engine.requests and returns how many outputs they ask for.
int64_t take_requests(mm_engine& engine, const mm_request* requests, int32_t count) {
  require(count > 0, "count of requests is " + std::to_string(count) + ", but must be above 0");
  require_pointer(requests, "requests");
  engine.requests.clear();
  int64_t outputs = 0;
  for (int32_t i = 0; i < count; ++i) {
    const mm_request& request = requests[i];
    require_pointer(request.sequence, "the sequence of a request");
    require(request.sequence->engine == &engine, "a request names a sequence of another engine");
    require_pointer(request.tokens, "tokens of a request");
    require(request.outputs >= 0 && request.outputs <= request.count,
            "outputs is " + std::to_string(request.outputs) + ", but must be between 0 and the count of tokens, " +
                std::to_string(request.count));
    Request taken;
    taken.sequence = request.sequence->sequence.get();
    taken.tokens = request.tokens;
    taken.count = request.count;
    taken.outputs = request.outputs;
    engine.requests.push_back(taken);
    outputs += request.outputs;
  }
  return outputs;
}

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

const char* mm_last_error(void) { return last_error; }

const char* mm_version(void) { return MOBILEMOE_VERSION; }

const char* const* mm_instruction_sets(void) { return mobilemoe::available_kernels(); }

mm_options mm_default_options(void) { return {0, MM_KV_INT8, 0, 0, 0, -1, 0, 0}; }

mm_sampling mm_greedy(void) {
  mm_sampling sampling = {};
  sampling.top_p = 1;
  sampling.repetition_penalty = 1;
  return sampling;
}

mm_status mm_repack(const char* folder, const char* engine_file) {
  return guarded([&] {
    require_pointer(folder, "folder");
    require_pointer(engine_file, "engine_file");
    mobilemoe::write_engine_file(folder, engine_file, nullptr, nullptr, nullptr);
  });
}

mm_status mm_verify(const char* engine_file) {
  return guarded([&] {
    require_pointer(engine_file, "engine_file");
    mobilemoe::verify_engine_file(engine_file);
  });
}

mm_status mm_open(const char* path, const mm_options* options, mm_engine** engine) {
  return guarded([&] {
    require_pointer(path, "path");
    require_pointer(options, "options");
    require_pointer(engine, "engine");
    const int kv = number_of(options->kv);
    require(kv >= MM_KV_INT8 && kv <= MM_KV_F32,
            "kv is " + std::to_string(kv) + ", but must be MM_KV_INT8, MM_KV_F16 or MM_KV_F32");
    EngineOptions taken;
    taken.threads = options->threads;
    taken.kv = static_cast<KvType>(kv);
    taken.fp32 = options->fp32_activations != 0;
    taken.max_memory = options->max_memory;
    taken.routing = {options->experts_per_token, options->cache_prior, options->always_top, 0, options->capacity};
    *engine = std::make_unique<mm_engine>(mobilemoe::open_model(path, taken.max_memory == 0), taken).release();
  });
}

void mm_close(mm_engine* engine) { delete engine; }

mm_info mm_describe(const mm_engine* engine) {
  if (engine == nullptr) return {};
  const Model& model = engine->engine.model();
  return {model.config.vocab_size,
          model.config.num_hidden_layers,
          model.config.max_position_embeddings,
          model.config.num_experts_per_tok,
          model.file_bytes,
          engine->engine.threads(),
          engine->engine.isa()};
}

mm_status mm_sequence_new(mm_engine* engine, int32_t capacity, mm_sequence** sequence) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(sequence, "sequence");
    auto made = std::make_unique<mm_sequence>();
    made->engine = engine;
    made->sequence = engine->engine.new_sequence(capacity);
    *sequence = made.release();
  });
}

void mm_sequence_free(mm_sequence* sequence) { delete sequence; }

int32_t mm_sequence_length(const mm_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->sequence->length();
}

int32_t mm_sequence_tokens(const mm_sequence* sequence, int32_t* tokens, int32_t count) {
  if (sequence == nullptr || tokens == nullptr) return 0;
  const std::vector<int>& held = sequence->sequence->tokens();
  count = std::clamp(count, 0, static_cast<int32_t>(held.size()));
  std::copy_n(held.begin(), count, tokens);
  return count;
}

uint64_t mm_kv_bytes(const mm_engine* engine, int32_t tokens) {
  return engine == nullptr ? 0 : engine->engine.kv_bytes(tokens);
}

mm_status mm_sequence_truncate(mm_sequence* sequence, int32_t length) {
  return guarded([&] {
    require_pointer(sequence, "sequence");
    sequence->sequence->truncate(length);
  });
}

mm_status mm_sequence_copy(mm_sequence* to, const mm_sequence* from, int32_t length) {
  return guarded([&] {
    require_pointer(to, "to");
    require_pointer(from, "from");
    require(to->engine == from->engine, "to and from are sequences of two engines");
    to->engine->engine.make_room(to->engine->engine.kv_bytes(length));
    to->sequence->copy_from(*from->sequence, length);
  });
}

mm_status mm_sequence_save(const mm_engine* engine, const mm_sequence* sequence, const char* path) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(sequence, "sequence");
    require_pointer(path, "path");
    require(sequence->engine == engine, "the sequence belongs to another engine");
    mobilemoe::save_sequence(*sequence->sequence, path, engine->engine.model().fingerprint);
  });
}

mm_status mm_sequence_load(const mm_engine* engine, mm_sequence* sequence, const char* path) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(sequence, "sequence");
    require_pointer(path, "path");
    require(sequence->engine == engine, "the sequence belongs to another engine");
    mobilemoe::load_sequence(*sequence->sequence, path, engine->engine.model().fingerprint);
  });
}

mm_status mm_forward(mm_engine* engine, const mm_request* requests, int32_t count, float* logits) {
  return guarded([&] {
    require_pointer(engine, "engine");
    if (take_requests(*engine, requests, count) > 0) require_pointer(logits, "logits");
    engine->engine.forward(engine->requests.data(), count, logits);
  });
}

mm_status mm_score_targets(mm_engine* engine, const mm_request* requests, int32_t count, const int32_t* targets,
                           mm_score* scores) {
  return guarded([&] {
    require_pointer(engine, "engine");
    const int64_t outputs = take_requests(*engine, requests, count);
    if (outputs > 0) {
      require_pointer(targets, "targets");
      require_pointer(scores, "scores");
    }
    engine->engine.check(engine->requests.data(), count);  // before memory is allocated for the scores
    engine->scores.resize(outputs);
    engine->engine.score(engine->requests.data(), count, targets, engine->scores.data());
    for (const Score& score : engine->scores) *scores++ = {score.logprob, score.is_greedy ? 1 : 0};
  });
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

mm_status mm_load_draft(mm_engine* engine, const char* path) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(path, "path");
    engine->engine.use_head(mobilemoe::read_draft_file(path, engine->engine.model().config));
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

mm_drafts mm_count_drafts(const mm_engine* engine) {
  if (engine == nullptr) return {};
  const mobilemoe::DraftCounts& counts = engine->engine.drafts();
  return {counts.passes, counts.proposed, counts.accepted};
}

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
