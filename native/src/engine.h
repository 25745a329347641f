// The engine: a model, its threads and working memory, and the sequences that it continues.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine_file.h"
#include "kv_cache.h"
#include "thread_pool.h"

namespace mobilemoe {

struct EngineOptions {
  int threads = 0;  // 0: one for each core
  KvType kv = KvType::int8;
  bool fp32 = false;  // activations in fp32: exact, slow
};

// One text in progress: its tokens and their keys and values.
class Sequence {
 public:
  Sequence(const Model& model, KvType kv, int capacity) : kv_(model.config, kv, capacity) {
    tokens_.reserve(static_cast<size_t>(capacity));  // so that decoding takes no memory
  }
  int length() const { return static_cast<int>(tokens_.size()); }
  int capacity() const { return kv_.capacity(); }
  const std::vector<int>& tokens() const { return tokens_; }
  void truncate(int length);  // forgets all tokens but the first `length`; throws Error(usage) if there are fewer
  void copy_from(const Sequence& other, int length);  // becomes the first `length` tokens of another of the same kind

  // Saved with the model's fingerprint and a checksum; load throws Error(file) for another model, kind or damage.
  void save(const std::string& path, const Fingerprint& fingerprint) const;
  void load(const std::string& path, const Fingerprint& fingerprint);

 private:
  friend class Engine;
  KvCache kv_;
  std::vector<int> tokens_;
};

// What one sequence takes part with in a forward pass: new tokens, and the last `outputs` positions whose logits are
// wanted.
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

  // Appends every request's tokens to its sequence. logits [sum of outputs][vocab], by request, then by position.
  // What one sequence gets does not depend on the others. Throws Error(usage) or Error(full) before anything changes.
  void forward(const Request* requests, int count, float* logits);

  // What `forward` throws where requests cannot be.
  void check(const Request* requests, int count) const;

  // As `forward`, but only scores[i] of targets[i], one for each output.
  void score(const Request* requests, int count, const int* targets, Score* scores);

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
