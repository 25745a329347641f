// The routed experts that are in memory where not all of them may be: a limited number of places of equal size. What is
// missing is read from the model's ExpertSource by threads of its own, while others compute.
//
// The expert that was used least makes room: each use counts, and half as much with every 32 tokens that have passed
// since (benchmarks/expert_cache.py compares this with other rules). Uses count from the end of their pass on, so that
// in a long pass the first layers do not drive out the experts of the last ones just before these are needed.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "compute/ahead_trial.h"
#include "compute/cache_prior.h"
#include "kernels/kernels.h"
#include "model/model.h"

namespace mobilemoe {

// An expert that rows of a pass visit.
struct Visit {
  int expert;
  int rows;
  int slot;  // while decoding: which of the token's experts it is
};

struct ExpertUse {
  uint64_t hits = 0;   // visits of experts that were in memory
  uint64_t ahead = 0;  // of those that were not, but were on their way
  uint64_t misses = 0;
  uint64_t bytes_read = 0;
  size_t places = 0, experts = 0;  // how many experts there may be in memory, of how many
  size_t expert_bytes = 0;         // of one expert in memory
};

class ExpertCache {
 public:
  // At most `places` experts, which limit() can lower. Throws Error(memory).
  ExpertCache(const Model& model, const Kernels& kernels, size_t places);
  ~ExpertCache();
  ExpertCache(const ExpertCache&) = delete;
  ExpertCache& operator=(const ExpertCache&) = delete;

  // The fewest places that a pass can do with: the experts of one token and those that are read meanwhile.
  static size_t least_places(const Config& config) { return 2 * static_cast<size_t>(config.num_experts_per_tok); }

  size_t place_bytes() const { return source_.bytes(); }
  size_t used_bytes() const;  // of memory, by places that hold an expert
  void limit(size_t places);  // between passes; at least least_places()
  ExpertUse use() const;

  void begin_pass(int rows);  // throws Error(memory) if no thread can be started
  void end_pass();            // throws Error(file) if a read failed: the pass has computed nonsense

  // Of a pass, and not to throw: the calls come from tasks of a thread pool.

  // Puts the visited experts that are in memory before the others, and returns how many these are.
  int sort(int layer, Visit* visits, int count) const;
  // Keeps these experts in memory until their release, and begins to read those that are missing: at most `wave()`,
  // beside those that are kept already. Returns the layer's experts, of which only the kept ones are to be used.
  const Ffn* keep(int layer, const Visit* visits, int count);
  void release(int layer, const Visit* visits, int count);
  void wait(int layer, int expert);  // until a kept expert has been read
  int wave() const;  // how many experts a step of a long pass should keep, so that as many can be read meanwhile
  int places() const { return static_cast<int>(places_); }

  // Sets `cached` [experts] to 1 for those of the layer that are in memory or on their way, and to 0 for the others.
  void look(int layer, uint8_t* cached) const;

  // Begins to read experts that the layer will probably want, by what its router says of x [rows][hidden], which is
  // still to go through other layers, and by what the prior prefers if there is one. `layer` may be behind the last.
  // Not for few rows where it has turned out to be slower, but with a prior always: what is in memory decides there.
  void read_ahead(int layer, const float* x, int rows, CachePrior* prior);

 private:
  struct State;
  State& state();

  const Model& model_;
  const Kernels& kernels_;
  const ExpertSource& source_;
  const size_t most_;
  size_t places_;
  uint8_t* memory_ = nullptr;
  std::unique_ptr<State> state_;
  int forks_;
  int rows_ = 0;  // of the pass
  std::chrono::steady_clock::time_point began_;
  AheadTrial trial_;
  std::vector<float> normed_, logits_, scores_, weights_;
  std::vector<int> chosen_;
  int likely_;  // of the experts that a prediction names, the best so many are read: the last is wrong too often
};

}  // namespace mobilemoe
