// The feed-forward half of a layer as one operator: norm, router, top-k, permutation, gate and up, SwiGLU, down and the
// weighted sum, with the shared expert in the same lists of tasks (spec section 2, point 5).
#pragma once

#include <memory>
#include <vector>

#include "compute/cache_prior.h"
#include "compute/capacity.h"
#include "compute/expert_cache.h"
#include "compute/rows.h"
#include "kernels/kernels.h"
#include "model/model.h"
#include "threads/thread_pool.h"

namespace mobilemoe {

// Experts that a caller forces upon a row, and where to note a row's choice: [active] each, or null.
struct RoutingHooks {
  const int* forced = nullptr;
  int* chosen = nullptr;
};

class FeedForward {
 public:
  // `cache` holds the routed experts, or null: the model does.
  FeedForward(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32, ExpertCache* cache = nullptr,
              const RoutingOptions& routing = {});

  // x [rows][hidden] += FFN(RMSNorm(x)). hooks: one for each row, or null. in_prompt [rows]: 1 for those rows whose
  // text has others in this pass; null where none has.
  void run(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks,
           const uint8_t* in_prompt = nullptr);

  RoutingUse routing_use() const;

 private:
  // What the tasks of one kind of expert read and write. Rows of the shared expert are the rows of the pass; those of
  // the routed experts are pairs of a row and one of its experts, sorted by expert.
  struct Memory {
    Rows<uint8_t> inputs, hidden_units;  // as the matrices want them
    Rows<float> outputs;
  };

  // A part of one FFN's work: rows of its memory, and groups of 32 hidden units or panels of outputs.
  struct Task {
    const Ffn* ffn;
    Memory* memory;
    int input_row;  // where the rows are read, and where they are written: they differ while decoding, when all experts
    int row;        // read the same input
    int rows, begin, end;
  };

  void reserve(const LayerWeights& layer, int rows);
  void reserve(const Ffn& ffn, int rows, Memory& memory);
  void decode(const LayerWeights& layer, float* x, const RoutingHooks* hooks);
  bool is_preferring(int row) const { return prior_ != nullptr && (prior_->is_imitated() || !is_in_prompt(row)); }
  bool is_in_prompt(int row) const { return in_prompt_ != nullptr && in_prompt_[row] != 0; }
  void prefill(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks);
  void route(const LayerWeights& layer, int row, const RoutingHooks* hooks);
  void route_all(const LayerWeights& layer, int rows, const RoutingHooks* hooks);
  void sort_pairs(int rows);
  void list_tasks(const Ffn& ffn, Memory& memory, int first_row, int rows, int units_per_task, int units);
  void run_in_waves(const LayerWeights& layer, int rows, const float* x, int visited);
  void run_experts(const LayerWeights& layer, const Ffn* experts, const Visit* visits, int count, int shared_rows);
  void list_routed(const Ffn* experts, const Visit* visits, int count, int units_per_task, int units);
  const Task* next_task(int task) const;
  void gate_up(const Task& task, const Task* next);
  void down(const Task& task, const Task* next);
  Form input_form(const Ffn& ffn) const { return form_of(ffn.gate_up, fp32_); }
  Form unit_form(const Ffn& ffn) const { return form_of(ffn.down, fp32_); }

  const Config& config_;
  const Kernels& kernels_;
  ThreadPool& pool_;
  ExpertCache* const cache_;
  bool fp32_;
  int active_, experts_, padded_experts_, hidden_;
  std::unique_ptr<CachePrior> prior_;   // or null
  std::unique_ptr<Capacity> capacity_;  // or null
  const uint8_t* in_prompt_ = nullptr;  // of the pass

  Rows<float> normed_, logits_, scores_, weights_;  // of each row: [hidden], [padded experts] twice, [active]
  Rows<int> chosen_, pair_of_;                      // of each row, [active]: its experts, and the places of its pairs
  std::vector<int> expert_begin_;                   // where the pairs of each expert begin, and where the last ones end
  Memory shared_, routed_;
  std::vector<Visit> visits_;  // of the experts that the rows of this pass visit
  std::vector<Task> tasks_;
};

}  // namespace mobilemoe
