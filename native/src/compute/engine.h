// The engine: a model, its threads and working memory, and the sequences that it continues.
#pragma once

#include <exception>
#include <memory>

#include "compute/sampler.h"
#include "compute/sequence.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

struct EngineOptions {
  int threads = 0;  // 0: one for each core
  KvType kv = KvType::int8;
  bool fp32 = false;  // activations stay in fp32 instead of int8: exact, and slow
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

// One text whose next token is to be chosen, and what came of it: a choice, or the error of its sampler.
struct Choosing {
  Sampler* sampler = nullptr;
  const float* logits = nullptr;
  bool with_logprob = false;
  int top = 0;
  const uint32_t* allowed = nullptr;
  Choice choice{};
  std::exception_ptr error = nullptr;
};

class Forward;
struct Pass;

class Engine {
 public:
  Engine(Model model, const EngineOptions& options);
  ~Engine();

  const Model& model() const { return model_; }
  const EngineOptions& options() const { return options_; }
  const char* isa() const { return kernels_.isa; }
  int threads() const { return pool_.threads(); }

  std::unique_ptr<Sequence> new_sequence(int capacity) const;  // tokens; 0: the model's context

  // The memory that the keys and values of `tokens` tokens of one sequence fill, in bytes.
  size_t kv_bytes(int tokens) const { return kv_memory_bytes(model_.config, options_.kv, tokens); }

  // Appends every request's tokens to its sequence, and writes logits [sum of outputs][vocab], request by request. The
  // result of a sequence does not depend on the other requests. Throws Error(usage) or Error(full) before anything
  // changes.
  void forward(const Request* requests, int count, float* logits);

  // Throws what `forward` would throw for these requests.
  void check(const Request* requests, int count) const;

  // Runs the requests as `forward` does, but gives only a score for each output: scores[i] is that of targets[i].
  void score(const Request* requests, int count, const int* targets, Score* scores);

  // Chooses the next tokens of several texts, each with a sampler of its own, at the same time on the engine's threads.
  void choose(Choosing* texts, int count);

 private:
  template <class Use>
  void run_passes(const Request* requests, int count, const Use& use);
  template <class Use>
  void run_pass(const Use& use);

  Model model_;
  EngineOptions options_;
  const Kernels& kernels_;
  ThreadPool pool_;
  std::unique_ptr<Forward> forward_;
  std::unique_ptr<Pass> pass_;
};

}  // namespace mobilemoe
