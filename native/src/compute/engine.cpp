#include "compute/engine.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "compute/forward.h"
#include "compute/process_memory.h"
#include "compute/rows.h"
#include "error.h"
#include "kernels/dispatch.h"
#include "threads/cores.h"

namespace mobilemoe {
namespace {

constexpr int kScoredRows = 16;  // rows of logits in memory at once while scoring

// Under a limit of memory: what the allocator and the rest of the process may take during a pass, and from the opening
// of the engine to its first pass; and the shortest text, in tokens, that there has to be room for.
constexpr size_t kSlack = 8 << 20, kFirstSlack = 16 << 20;
constexpr int kShortText = 64;

// A limit that works, in words: rounded up to a whole number of megabytes or to four digits, and with 2 MB more, by
// which the next process may be larger than this one.
std::string limit_text(size_t least) {
  size_t step = 1000000;
  least += 2 * step;
  while (least / step >= 9999) step *= 10;
  return size_text((least / step + 1) * step);
}

// The working memory of a pass, in bytes: no less than what the operators take.
size_t working_bytes(const Config& c, int rows, bool fp32) {
  const size_t input = fp32 ? 4 : 2;  // bytes of one prepared input, its scales included
  const size_t attention = 2 * c.hidden_size + 4 * c.q_width() + 4 * c.kv_width();
  const size_t shared = c.is_moe ? c.intermediate_size_mlp : c.intermediate_size;
  const size_t routed = c.is_moe ? c.num_experts_per_tok : 0;
  const size_t floats = attention + 3 * c.hidden_size + 3 * c.num_local_experts + 64 + routed * c.hidden_size;
  const size_t inputs = 2 * c.hidden_size + c.q_width() + shared + routed * (c.hidden_size + c.intermediate_size);
  return rows * (floats * sizeof(float) + inputs * input);
}

// The model, with so many experts of each token as the options want; Error(usage) where they do not fit it.
Model routed_as(Model model, const EngineOptions& options) {
  const RoutingOptions& routing = options.routing;
  Config& config = model.config;
  if (!config.is_moe) {
    if (routing.experts_per_token != 0 || routing.prefers_cached() || routing.skips()) {
      throw Error(ErrorCode::usage, "the model is dense: it has no routing that could be changed");
    }
    return model;
  }
  const auto check = [](bool holds, const char* name, double value, const std::string& rule) {
    if (holds) return;
    char number[32];
    std::snprintf(number, sizeof number, "%g", value);
    throw Error(ErrorCode::usage, std::string(name) + " is " + number + ", but must be " + rule);
  };
  const int active = config.num_experts_per_tok, experts = config.num_local_experts;
  check(routing.experts_per_token >= 0 && routing.experts_per_token <= active, "experts_per_token",
        routing.experts_per_token, "from 1 to the model's own " + std::to_string(active) + " (0: as many)");
  if (routing.experts_per_token > 0) config.num_experts_per_tok = routing.experts_per_token;
  const int chosen = config.num_experts_per_tok;
  check(routing.cache_prior >= 0 && std::isfinite(routing.cache_prior), "cache_prior", routing.cache_prior,
        "0 (off) or more");
  check(routing.always_top >= -1 && routing.always_top <= chosen, "always_top", routing.always_top,
        "from 0 to the " + std::to_string(chosen) + " experts of a token (-1: half)");
  check(routing.cached_experts >= 0 && routing.cached_experts <= experts, "cached_experts", routing.cached_experts,
        "from 0 (none) to the " + std::to_string(experts) + " of a layer");
  check(routing.capacity >= 0 && routing.capacity <= 1, "capacity", routing.capacity, "above 0 and at most 1 (0: off)");
  if (routing.cached_experts > 0 && options.max_memory > 0) {
    throw Error(ErrorCode::usage, "cached_experts imitates a cache, but with max_memory there is a real one");
  }
  if (routing.cache_prior > 0 && routing.cached_experts == 0 && model.expert_source == nullptr) {
    throw Error(ErrorCode::usage,
                "cache_prior prefers experts in memory, but without max_memory all of them are there");
  }
  return model;
}

// A request's part of one pass.
struct Part {
  const Request* request;
  int begin, end;
};

}  // namespace

// Working memory of `run_passes`, kept from call to call.
struct Pass {
  std::vector<Part> parts;
  std::vector<Span> spans;
  std::vector<int> rows;   // whose logits are wanted
  size_t logits_held = 0;  // rows of logits that are in memory at once, at most
};

Engine::Engine(Model model, const EngineOptions& options)
    : model_(routed_as(std::move(model), options)),
      options_(options),
      kernels_(choose_kernels()),
      pool_(options.threads == 0 ? default_threads() : options.threads) {
  if (options_.fp32) options_.kv = KvType::f32;
  if (options_.max_memory > 0) {
    const size_t most = options_.max_memory,
                 needed = kFirstSlack + working_bytes(model_.config, kMaxRows, options_.fp32);
    const size_t least = least_memory(needed + kv_bytes(kShortText));
    if (most < least) {
      throw Error(ErrorCode::usage, "max_memory is " + size_text(most) + ", but the process needs at least " +
                                        limit_text(least) + " to compute with this model");
    }
    if (model_.expert_source != nullptr) {
      cache_ = std::make_unique<ExpertCache>(model_, kernels_, most / model_.expert_source->bytes());
    }
  }
  forward_ = std::make_unique<Forward>(model_, kernels_, pool_, options_.fp32, cache_.get(), options_.routing);
  pass_ = std::make_unique<Pass>();
}

Engine::~Engine() = default;

RoutingUse Engine::routing_use() const { return forward_->routing_use(); }

std::unique_ptr<Speculation> Engine::new_speculation(Speculate how) {
  if (options_.routing.depends_on_others()) {
    throw Error(ErrorCode::usage, "nothing can be guessed with cache_prior or capacity: guesses would change the text");
  }
  return std::make_unique<Speculation>(how, drafts_);
}

// What the process needs beside `bytes` more, with as few experts as possible.
size_t Engine::least_memory(size_t bytes) const {
  size_t experts = 0, places = 0;
  if (model_.expert_source != nullptr) {
    experts = ExpertCache::least_places(model_.config) * model_.expert_source->bytes();
    places = cache_ == nullptr ? 0 : cache_->used_bytes();
  }
  const size_t now = process_memory();
  return now - std::min(now, places) + experts + bytes;
}

size_t Engine::spare(size_t bytes) const {
  const size_t least = least_memory(kSlack + bytes);
  return options_.max_memory - std::min(options_.max_memory, least);
}

size_t Engine::room() const { return options_.max_memory == 0 ? SIZE_MAX : spare(working_growth(kMaxRows)); }

void Engine::make_room(size_t bytes) {
  if (options_.max_memory == 0) return;
  const size_t spare = this->spare(0);
  if (bytes > spare) {
    throw Error(ErrorCode::full, "max_memory is " + size_text(options_.max_memory) +
                                     ", but the process needs at least " + limit_text(least_memory(kSlack + bytes)) +
                                     " to go on");
  }
  if (cache_ != nullptr) {
    cache_->limit(ExpertCache::least_places(model_.config) + (spare - bytes) / cache_->place_bytes());
  }
}

// What working memory takes once a pass of so many rows runs, beyond what it has.
size_t Engine::working_growth(int rows) const {
  const auto working = [this](int count) { return working_bytes(model_.config, count, options_.fp32); };
  return rows > largest_pass_ ? working(rows) - working(largest_pass_) : 0;
}

// For working memory and logits, and the keys and values of the pass's tokens.
void Engine::make_room_for_pass(int rows) {
  if (options_.max_memory == 0) return;
  const size_t logits = std::min(pass_->rows.size(), pass_->logits_held);
  size_t bytes = logits * model_.config.vocab_size * sizeof(float) + working_growth(rows);
  for (const Span& span : pass_->spans) bytes += kv_bytes(span.position + span.count) - kv_bytes(span.position);
  make_room(bytes);
  largest_pass_ = std::max(largest_pass_, rows);
}

std::unique_ptr<Sequence> Engine::new_sequence(int capacity) const {
  const int context = model_.config.max_position_embeddings;
  if (capacity < 0 || capacity > context) {
    throw Error(ErrorCode::usage, "the capacity is " + std::to_string(capacity) +
                                      ", but must be within 1 and the context of " + std::to_string(context) +
                                      " (0: all of it)");
  }
  return std::make_unique<Sequence>(model_, options_.kv, capacity == 0 ? context : capacity);
}

void Engine::check(const Request* requests, int count) const {
  const Config& config = model_.config;
  if (count < 1) throw Error(ErrorCode::usage, "there are no requests");
  for (int i = 0; i < count; ++i) {
    const Request& request = requests[i];
    if (request.sequence == nullptr) throw Error(ErrorCode::usage, "a request has no sequence");
    for (int j = 0; j < i; ++j) {
      if (requests[j].sequence == request.sequence)
        throw Error(ErrorCode::usage, "two requests have the same sequence");
    }
    if (request.count < 1) throw Error(ErrorCode::usage, "there are no token ids: give at least one");
    if (request.outputs < 0 || request.outputs > request.count) {
      throw Error(ErrorCode::usage, "outputs is " + std::to_string(request.outputs) +
                                        ", but must be within 0 and the " + std::to_string(request.count) + " tokens");
    }
    const Sequence& sequence = *request.sequence;
    if (request.count > sequence.capacity() - sequence.length()) {
      throw Error(ErrorCode::full,
                  std::to_string(request.count) + " tokens behind " + std::to_string(sequence.length()) +
                      " are more than the sequence's capacity of " + std::to_string(sequence.capacity()));
    }
    for (int t = 0; t < request.count; ++t) {
      if (request.tokens[t] < 0 || request.tokens[t] >= config.vocab_size) {
        throw Error(ErrorCode::usage, "token id " + std::to_string(request.tokens[t]) +
                                          " is outside the vocabulary of " + std::to_string(config.vocab_size));
      }
    }
    const int forced = request.forced_experts == nullptr ? 0 : config.num_hidden_layers * config.num_experts_per_tok;
    for (int64_t k = 0; k < static_cast<int64_t>(request.count) * forced; ++k) {
      if (request.forced_experts[k] < 0 || request.forced_experts[k] >= config.num_local_experts) {
        throw Error(ErrorCode::usage, "expert " + std::to_string(request.forced_experts[k]) + " is not one of the " +
                                          std::to_string(config.num_local_experts));
      }
    }
  }
}

// Cuts the checked requests into passes of at most kMaxRows rows, in order. After each pass, use(rows) is called with
// the rows of the pass whose logits are wanted.
template <class Use>
void Engine::run_passes(const Request* requests, int count, const Use& use) {
  auto& parts = pass_->parts;
  parts.clear();
  int pass_rows = 0;
  for (int i = 0; i < count; ++i) {
    for (int begin = 0; begin < requests[i].count;) {
      const int end = std::min(requests[i].count, begin + kMaxRows - pass_rows);
      parts.push_back({&requests[i], begin, end});
      pass_rows += end - begin;
      begin = end;
      if (pass_rows == kMaxRows) {
        run_pass(use);
        parts.clear();
        pass_rows = 0;
      }
    }
  }
  if (!parts.empty()) run_pass(use);
}

template <class Use>
void Engine::run_pass(const Use& use) {
  const int per_token = model_.config.num_hidden_layers * model_.config.num_experts_per_tok;
  auto& [parts, spans, rows, held] = *pass_;
  spans.clear();
  rows.clear();
  int row = 0;
  for (const Part& part : parts) {
    const Request& request = *part.request;
    const ptrdiff_t experts = static_cast<ptrdiff_t>(part.begin) * per_token;
    spans.push_back({&request.sequence->kv(), request.tokens + part.begin, part.end - part.begin, row,
                     request.sequence->length(),
                     request.forced_experts == nullptr ? nullptr : request.forced_experts + experts,
                     request.chosen_experts == nullptr ? nullptr : request.chosen_experts + experts});
    for (int t = part.begin; t < part.end; ++t, ++row) {
      if (t >= request.count - request.outputs) rows.push_back(row);
    }
  }
  make_room_for_pass(row);
  forward_->run(spans.data(), static_cast<int>(spans.size()));
  for (const Part& part : parts) {
    part.request->sequence->append(part.request->tokens + part.begin, part.end - part.begin);
  }
  if (head_ != nullptr) keep_states();
  if (!rows.empty()) use(rows);
}

// Of the last tokens whose logits are wanted, as many as may be drafts and one more: from one of them the head goes on.
void Engine::keep_states() {
  const int size = head_->begin_size();
  int end = 0;
  for (const Part& part : pass_->parts) {
    end += part.end - part.begin;
    if (part.end < part.request->count) continue;
    const int count = std::min({part.end - part.begin, part.request->outputs, 1 + kMostDrafts});
    std::vector<float> states(static_cast<size_t>(count) * size);
    for (int i = 0; i < count; ++i) forward_->state(end - count + i, &states[static_cast<size_t>(i) * size]);
    part.request->sequence->keep_states(std::move(states), count);
  }
}

void Engine::use_head(DraftWeights weights) {
  head_ = std::make_unique<DraftHead>(std::move(weights), model_, kernels_, pool_, options_.fp32);
  forward_->keep(head_->layers());
}

void Engine::forward(const Request* requests, int count, float* logits) {
  check(requests, count);
  const size_t vocab = model_.config.vocab_size;
  int64_t inputs = 0, outputs = 0;
  for (const Request* request = requests; request < requests + count; ++request) {
    inputs += request->count;
    outputs += request->outputs;
  }
  const auto start = std::chrono::steady_clock::now();
  pass_->logits_held = kMaxRows;
  run_passes(requests, count, [&](const std::vector<int>& rows) {
    forward_->logits(rows.data(), static_cast<int>(rows.size()), logits);
    logits += rows.size() * vocab;
  });
  if (inputs == outputs && inputs <= PassCosts::kMostRows) {
    const std::chrono::duration<double> passed = std::chrono::steady_clock::now() - start;
    costs_.note(static_cast<int>(inputs), passed.count());
  }
}

void Engine::score(const Request* requests, int count, const int* targets, Score* scores) {
  check(requests, count);
  const int vocab = model_.config.vocab_size;
  int64_t outputs = 0;
  for (int i = 0; i < count; ++i) outputs += requests[i].outputs;
  for (int64_t i = 0; i < outputs; ++i) {
    if (targets[i] < 0 || targets[i] >= vocab) {
      throw Error(ErrorCode::usage,
                  "target " + std::to_string(targets[i]) + " is outside the vocabulary of " + std::to_string(vocab));
    }
  }
  pass_->logits_held = kScoredRows;
  Rows<float> logits;
  logits.resize(static_cast<int>(std::min<int64_t>(outputs, kScoredRows)), vocab);
  run_passes(requests, count, [&](const std::vector<int>& rows) {
    for (size_t first = 0; first < rows.size(); first += kScoredRows) {
      const int here = static_cast<int>(std::min<size_t>(kScoredRows, rows.size() - first));
      forward_->logits(rows.data() + first, here, logits[0]);
      pool_.run(here, [&](int row, int) {
        const float* row_logits = logits[row];
        const int target = targets[row];
        bool greedy = true;
        for (int v = 0; v < vocab; ++v) {
          if (row_logits[v] > row_logits[target] || (v < target && row_logits[v] == row_logits[target])) greedy = false;
        }
        scores[row] = {row_logits[target] - kernels_.log_sum_exp(row_logits, vocab), greedy};
      });
      for (int row = 0; row < here; ++row) {
        if (std::isnan(scores[row].logprob)) {
          throw Error(ErrorCode::numerics, "the model gave no usable logits: its weights hold NaN");
        }
      }
      targets += here;
      scores += here;
    }
  });
}

}  // namespace mobilemoe
