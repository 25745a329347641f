// The engine: a model, its threads and working memory, and the sequences that it continues.
#pragma once

#include <exception>
#include <memory>

#include "compute/expert_cache.h"
#include "compute/pass_costs.h"
#include "compute/routing_options.h"
#include "compute/sampler.h"
#include "compute/sequence.h"
#include "compute/speculation.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

struct EngineOptions {
  int threads = 0;  // 0: default_threads()
  KvType kv = KvType::int8;
  bool fp32 = false;  // activations stay in fp32 instead of int8: exact, and slow
  // Bytes that the whole process may come to have, what it had before included; 0: no limit. Of a model that was opened
  // without its routed experts as many of these are kept in memory as then fit.
  size_t max_memory = 0;
  RoutingOptions routing;
};

// The part of one sequence in a forward pass: the tokens to append, and for how many of them, counted from the end,
// logits are wanted.
struct Request {
  Sequence* sequence = nullptr;
  const int* tokens = nullptr;
  int count = 0;
  int outputs = 1;
  const int* forced_experts = nullptr;  // [count][layers][active]: take these instead of the router's choice; or null
  int* chosen_experts = nullptr;        // [count][layers][active]: where to note the choice; or null
};

struct Score {
  float logprob;   // of the target, in nats
  bool is_greedy;  // whether no token is likelier (ties to the lowest id)
};

// One text whose next token is to be chosen, and the ones behind it as long as the drafts that were computed with it
// turn out right; and what came of it: the choices, ended by the error of its sampler if it had one.
struct Choosing {
  Sampler* sampler = nullptr;
  const float* logits = nullptr;       // [1 + drafts][vocab]
  Speculation* speculation = nullptr;  // whose proposal begins with the drafts; or null, without drafts
  int drafts = 0;
  bool with_logprob = false;
  int top = 0;
  const uint32_t* allowed = nullptr;
  std::vector<Choice> choices;
  std::exception_ptr error = nullptr;
};

// One text that `step` continues.
struct Step {
  Sequence* sequence = nullptr;
  const int* tokens = nullptr;  // to append: the prompt or a part of it, then always the last token chosen
  int count = 0;
  Sampler* sampler = nullptr;
  Speculation* speculation = nullptr;  // or null: without drafts
  std::vector<int> chosen;             // the next token, and those behind it that were drafted
};

class Forward;
struct Pass;

class Engine {
 public:
  // Throws Error(usage) where max_memory is too little, or `routing` is not possible with this model.
  Engine(Model model, const EngineOptions& options);
  ~Engine();

  const Model& model() const { return model_; }
  const EngineOptions& options() const { return options_; }
  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_.threads(); }

  std::unique_ptr<Sequence> new_sequence(int capacity) const;  // tokens; 0: the model's context

  // The memory that the keys and values of `tokens` tokens of one sequence fill, in bytes.
  size_t kv_bytes(int tokens) const { return kv_memory_bytes(model_.config, options_.kv, tokens); }

  // Lets routed experts go until the process can take `bytes` more; throws Error(full) if max_memory does not allow it.
  void make_room(size_t bytes);

  // How many more bytes there could be now for keys and values of all texts; without a limit SIZE_MAX.
  size_t room() const;

  ExpertUse expert_use() const { return cache_ == nullptr ? ExpertUse{} : cache_->use(); }

  RoutingUse routing_use() const;

  // Appends every request's tokens to its sequence, and writes logits [sum of outputs][vocab], request by request. The
  // result of a sequence does not depend on the other requests, unless the routing does. Throws Error(usage) or
  // Error(full) before anything changes.
  void forward(const Request* requests, int count, float* logits);

  // Throws what `forward` would throw for these requests.
  void check(const Request* requests, int count) const;

  // Runs the requests as `forward` does, but gives only a score for each output: scores[i] is that of targets[i].
  void score(const Request* requests, int count, const int* targets, Score* scores);

  // For a pass that appends one token to each of these texts, and has `rows` rows in all: chooses the drafts that make
  // it longer, by what passes cost so far. They are the first ones of each text's proposal.
  void draft(Drafting* texts, int count, int rows) { choose_drafts(texts, count, rows, costs_, head_.get()); }

  // Takes the draft head in `weights` to guess with. Call it before there are sequences.
  void use_head(DraftWeights weights);
  bool has_head() const { return head_ != nullptr; }

  // Chooses the next tokens of several texts, each with a sampler of its own, at the same time on the engine's threads.
  void choose(Choosing* texts, int count);

  // Continues several texts by a token each, or more where drafts were right: `draft`, `forward` and `choose` in one.
  // Afterwards a sequence holds everything but the last token chosen. Throws as `forward` does, and what a sampler
  // throws once all sequences are as they should be.
  void step(Step* steps, int count);

  // Throws Error(usage) where guesses would change the text, because the routing depends on other tokens.
  std::unique_ptr<Speculation> new_speculation(Speculate how);
  const DraftCounts& drafts() const { return drafts_; }

 private:
  template <class Use>
  void run_passes(const Request* requests, int count, const Use& use);
  template <class Use>
  void run_pass(const Use& use);
  void make_room_for_pass(int rows);
  size_t least_memory(size_t bytes) const;
  size_t spare(size_t bytes) const;
  size_t working_growth(int rows) const;
  void keep_states();

  Model model_;
  EngineOptions options_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<Pass> pass_;
  std::unique_ptr<DraftHead> head_;  // or null
  PassCosts costs_;
  DraftCounts drafts_;
  std::vector<float> logits_;  // of `step`
  int largest_pass_ = 0;       // rows
};

}  // namespace mobilemoe
