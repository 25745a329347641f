// The C API: engines, and their forward passes.
#include "api/handles.h"
#include "files/draft_file.h"
#include "files/engine_file.h"
#include "files/open_model.h"
#include "files/repack.h"
#include "kernels/dispatch.h"

using namespace mobilemoe;
using namespace mobilemoe::api;

static_assert(static_cast<int>(ErrorCode::usage) == MM_USAGE && static_cast<int>(ErrorCode::numerics) == MM_NUMERICS);
static_assert(static_cast<int>(KvType::int8) == MM_KV_INT8 && static_cast<int>(KvType::f32) == MM_KV_F32);

namespace {

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

}  // namespace

const char* mm_version(void) { return MOBILEMOE_VERSION; }

const char* const* mm_instruction_sets(void) { return mobilemoe::available_kernels(); }

mm_options mm_default_options(void) { return {0, MM_KV_INT8, 0, 0, 0, -1, 0, 0}; }

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

uint64_t mm_kv_bytes(const mm_engine* engine, int32_t tokens) {
  return engine == nullptr ? 0 : engine->engine.kv_bytes(tokens);
}

mm_status mm_load_draft(mm_engine* engine, const char* path) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(path, "path");
    engine->engine.use_head(mobilemoe::read_draft_file(path, engine->engine.model().config));
  });
}

mm_drafts mm_count_drafts(const mm_engine* engine) {
  if (engine == nullptr) return {};
  const mobilemoe::DraftCounts& counts = engine->engine.drafts();
  return {counts.passes, counts.proposed, counts.accepted};
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
