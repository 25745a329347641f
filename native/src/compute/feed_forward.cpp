#include "compute/feed_forward.h"

#include <algorithm>

#include "compute/routing.h"

namespace mobilemoe {
namespace {

constexpr int kGateUpPanels = 4;  // 32 gates and 32 ups, from which one group of hidden units is computed
constexpr int kTaskGroups = 4;    // groups of hidden units of a prefill task
constexpr int kTaskPanels = 16;   // panels of a prefill task's outputs
constexpr int kDecodePanels = 8;  // panels of a decoding task: as many streams from memory at once
constexpr int kDecodeGroups = kDecodePanels / kGateUpPanels;

}  // namespace

FeedForward::FeedForward(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32, ExpertCache* cache,
                         const RoutingOptions& routing)
    : config_(config),
      kernels_(kernels),
      pool_(pool),
      cache_(cache),
      fp32_(fp32),
      active_(config.is_moe ? config.num_experts_per_tok : 0),
      experts_(config.is_moe ? config.num_local_experts : 0),
      padded_experts_(round_up(experts_, kPanel)),
      hidden_(config.hidden_size),
      prior_(routing.prefers_cached() ? std::make_unique<CachePrior>(config, routing) : nullptr),
      capacity_(routing.skips() ? std::make_unique<Capacity>(config, routing) : nullptr) {}

RoutingUse FeedForward::routing_use() const {
  RoutingUse use;
  if (prior_ != nullptr) prior_->count(use);
  if (capacity_ != nullptr) capacity_->count(use);
  return use;
}

void FeedForward::reserve(const LayerWeights& layer, int rows) {
  normed_.resize(rows, hidden_);
  if (layer.shared.width > 0) reserve(layer.shared, rows, shared_);
  if (layer.experts.empty()) return;
  reserve(layer.experts[0], rows * active_, routed_);
  logits_.resize(rows, padded_experts_);
  scores_.resize(rows, prior_ == nullptr ? padded_experts_ : 2 * padded_experts_);
  weights_.resize(rows, active_);
  chosen_.resize(rows, active_);
  pair_of_.resize(rows, active_);
  expert_begin_.resize(experts_ + 1);
  visits_.resize(experts_);
}

void FeedForward::reserve(const Ffn& ffn, int rows, Memory& memory) {
  memory.inputs.resize(rows, input_bytes(ffn.gate_up, input_form(ffn)));
  memory.hidden_units.resize(rows, input_bytes(ffn.down, unit_form(ffn)));
  memory.outputs.resize(rows, round_up(hidden_, kGroup));
}

void FeedForward::run(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks,
                      const uint8_t* in_prompt) {
  reserve(layer, rows);
  in_prompt_ = in_prompt;
  if (rows == 1) {
    decode(layer, x, hooks);
  } else {
    prefill(layer, rows, x, hooks);
  }
}

void FeedForward::route(const LayerWeights& layer, int row, const RoutingHooks* hooks) {
  const int* forced = hooks == nullptr ? nullptr : hooks[row].forced;
  if (is_preferring(row)) {
    prior_->choose(layer.index, logits_[row], layer.expert_bias, forced, scores_[row], chosen_[row], weights_[row]);
  } else {
    choose_experts(config_, logits_[row], layer.expert_bias, forced, scores_[row], chosen_[row], weights_[row]);
  }
  if (hooks != nullptr && hooks[row].chosen != nullptr) std::copy_n(chosen_[row], active_, hooks[row].chosen);
}

// In order, where the choice of one row depends on that of another.
void FeedForward::route_all(const LayerWeights& layer, int rows, const RoutingHooks* hooks) {
  if (prior_ == nullptr) return for_rows(pool_, rows, [&](int row) { route(layer, row, hooks); });
  if (!prior_->is_imitated()) cache_->look(layer.index, prior_->cached(layer.index));
  for (int row = 0; row < rows; ++row) route(layer, row, hooks);
}

// One token: each step of all its experts is one list of small tasks, so that no thread waits for another expert.
void FeedForward::decode(const LayerWeights& layer, float* x, const RoutingHooks* hooks) {
  float* normed = normed_[0];
  kernels_.rms_norm(x, layer.post_attention_norm, hidden_, static_cast<float>(config_.rms_norm_eps), normed);
  const Ffn& shared = layer.shared;
  const bool routed = experts_ > 0;
  const int shared_groups = shared.width / kGroup, groups = routed ? layer.experts[0].width / kGroup : 0;
  if (shared_groups > 0) kernels_.prepare[input_form(shared)](normed, hidden_, shared_.inputs[0]);
  if (routed) kernels_.prepare[input_form(layer.experts[0])](normed, hidden_, routed_.inputs[0]);
  const int* chosen = chosen_[0];
  const Ffn* experts = layer.experts.data();
  const int router_tasks = routed ? 1 : 0;  // the router runs beside the shared expert, which does not wait for it
  const auto shared_task = [&](int index) {
    const int group = std::min(index * kDecodeGroups, shared_groups);
    return Task{&shared, &shared_, 0, 0, 1, group, std::min(group + kDecodeGroups, shared_groups)};
  };
  pool_.run(router_tasks + divide_up(shared_groups, kDecodeGroups), [&](int task, int) {
    if (task < router_tasks) {
      kernels_.router(layer.router, padded_experts_ / kPanel, hidden_, normed, 0, 1, logits_[0]);
      if (prior_ != nullptr && cache_ != nullptr) cache_->look(layer.index, prior_->cached(layer.index));
      route(layer, 0, hooks);
      for (int slot = 0; slot < active_; ++slot) visits_[slot] = {chosen[slot], 1, slot};
      if (cache_ != nullptr) {
        cache_->sort(layer.index, visits_.data(), active_);
        experts = cache_->keep(layer.index, visits_.data(), active_);
        cache_->read_ahead(layer.index + 1, x, 1, prior_.get());
      }
    } else {
      const Task next = shared_task(task - router_tasks + pool_.threads());
      gate_up(shared_task(task - router_tasks), &next);
    }
  });
  if (routed) {
    const int tasks = divide_up(groups, kDecodeGroups);
    const auto routed_task = [&](int index) {
      const Visit& visit = visits_[index / tasks];
      const int group = index % tasks * kDecodeGroups, end = std::min(group + kDecodeGroups, groups);
      return Task{&experts[visit.expert], &routed_, 0, visit.slot, 1, group, end};
    };
    pool_.run(active_ * tasks, [&](int task, int) {
      if (cache_ != nullptr) cache_->wait(layer.index, visits_[task / tasks].expert);
      const int next = task + pool_.threads();
      const Task next_task = routed_task(next < active_ * tasks ? next : task);
      gate_up(routed_task(task), next < active_ * tasks ? &next_task : nullptr);
    });
  }
  const int panels = routed ? layer.experts[0].down.panels() : shared.down.panels();
  const int each = std::clamp(panels / (3 * pool_.threads()) / 2 * 2, 2, kDecodePanels);  // Axis::out needs pairs
  const int has_shared = shared_groups > 0 ? 1 : 0, ffns = has_shared + active_, step = pool_.threads() * each;
  const auto ffn_at = [&](int i) -> const Ffn& { return i < has_shared ? shared : experts[chosen[i - has_shared]]; };
  pool_.run(divide_up(panels, each), [&](int task, int) {
    const int begin = task * each, first = begin * kPanel;
    const int count = std::min(each * kPanel, hidden_ - first);
    float y[kDecodePanels * kPanel];
    for (int i = 0; i < ffns; ++i) {
      const int slot = i - has_shared;
      const Ffn& ffn = ffn_at(i);
      const Matrix down = i + 1 < ffns ? ffn.down.before(ffn_at(i + 1).down, begin, begin + each)
                                       : ffn.down.before(ffn_at(0).down, begin + step, begin + step + each);
      kernels_.matmul[unit_form(ffn)](down, begin, std::min(begin + each, panels),
                                      slot < 0 ? shared_.hidden_units[0] : routed_.hidden_units[slot], 0, 1, y, 0);
      kernels_.add_scaled(y, slot < 0 ? 1.0f : weights_[0][slot], count, x + first);
    }
  });
  if (routed && cache_ != nullptr) cache_->release(layer.index, visits_.data(), active_);
}

// Many tokens: the pairs of a token and one of its experts are sorted by expert, so that the tokens of an expert form
// one matrix product.
void FeedForward::prefill(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks) {
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const bool routed = experts_ > 0, has_shared = layer.shared.width > 0;
  const bool apart = routed && has_shared && rows <= kFewRows;  // the router runs beside the shared expert
  const auto router = [&](int first, int end) {
    kernels_.router(layer.router, padded_experts_ / kPanel, hidden_, normed_[first], normed_.width(), end - first,
                    logits_[first]);
  };
  const auto x_of = [&](int row) { return x + static_cast<size_t>(row) * hidden_; };
  for_row_ranges(pool_, rows, [&](int first, int end) {
    for (int row = first; row < end; ++row) {
      kernels_.rms_norm(x_of(row), layer.post_attention_norm, hidden_, eps, normed_[row]);
      if (has_shared) kernels_.prepare[input_form(layer.shared)](normed_[row], hidden_, shared_.inputs[row]);
    }
    if (!routed || apart) return;
    router(first, end);
    for (int row = first; row < end && prior_ == nullptr; ++row) route(layer, row, hooks);
  });
  tasks_.clear();
  list_tasks(layer.shared, shared_, 0, rows, kTaskGroups, layer.shared.width / kGroup);
  if (apart) {
    const int count = static_cast<int>(tasks_.size());
    pool_.run(1 + count, [&](int task, int) {
      if (task == 0) return router(0, rows);
      gate_up(tasks_[task - 1], next_task(task - 1));
    });
    tasks_.clear();
  }
  if (apart || (routed && prior_ != nullptr)) route_all(layer, rows, hooks);
  if (routed) {
    if (capacity_ != nullptr && in_prompt_ != nullptr) {
      capacity_->skip(layer.index, rows, in_prompt_, chosen_[0], weights_[0]);
    }
    sort_pairs(rows);
    const Form form = input_form(layer.experts[0]);
    const bool is_prepared = has_shared && input_form(layer.shared) == form;
    // Each token is quantized once, then copied to the places where its experts read.
    for_rows(pool_, rows, [&](int row) {
      const uint8_t* prepared = is_prepared ? shared_.inputs[row] : nullptr;
      for (int slot = 0; slot < active_; ++slot) {
        if (chosen_[row][slot] == kSkipped) continue;
        uint8_t* input = routed_.inputs[pair_of_[row][slot]];
        if (prepared == nullptr) {
          kernels_.prepare[form](normed_[row], hidden_, input);
          prepared = input;
        } else {
          std::copy_n(prepared, routed_.inputs.width(), input);
        }
      }
    });
  }
  int visited = 0;
  for (int e = 0; e < experts_; ++e) {
    const int count = expert_begin_[e + 1] - expert_begin_[e];
    if (count > 0) visits_[visited++] = {e, count, 0};
  }
  if (cache_ == nullptr || !routed) {
    run_experts(layer, layer.experts.data(), visits_.data(), visited, rows);
  } else {
    run_in_waves(layer, rows, x, visited);
  }
  for_rows(pool_, rows, [&](int row) {
    float* sum = x_of(row);
    if (has_shared) kernels_.add_scaled(shared_.outputs[row], 1.0f, hidden_, sum);
    for (int slot = 0; slot < active_; ++slot) {
      if (chosen_[row][slot] == kSkipped) continue;
      kernels_.add_scaled(routed_.outputs[pair_of_[row][slot]], weights_[row][slot], hidden_, sum);
    }
  });
}

// Those experts that are in memory, and then the others, as many at a time as there is room for: while one wave
// computes, the next one is read.
void FeedForward::run_in_waves(const LayerWeights& layer, int rows, const float* x, int visited) {
  const int there = cache_->sort(layer.index, visits_.data(), visited), wave = cache_->wave();
  int begin = 0, end = std::min(visited, std::max(wave, std::min(there, cache_->places() - wave)));
  const Ffn* experts = cache_->keep(layer.index, visits_.data(), end);
  while (begin < visited) {
    const Visit* now = &visits_[begin];
    const int count = end - begin, next = std::min(visited, end + wave);
    if (next > end) cache_->keep(layer.index, &visits_[end], next - end);
    if (next == visited) cache_->read_ahead(layer.index + 1, x, rows, prior_.get());
    run_experts(layer, experts, now, count, begin == 0 ? rows : 0);
    cache_->release(layer.index, now, count);
    begin = end;
    end = next;
  }
}

// The rows that visit some experts, beside the tasks that are listed already; and so many rows through the shared one's
// second half.
void FeedForward::run_experts(const LayerWeights& layer, const Ffn* experts, const Visit* visits, int count,
                              int shared_rows) {
  const int units = count > 0 ? experts[visits[0].expert].width / kGroup : 0;
  list_routed(experts, visits, count, kTaskGroups, units);
  pool_.run(static_cast<int>(tasks_.size()), [&](int task, int) {
    const Task& now = tasks_[task];
    if (cache_ != nullptr && now.memory == &routed_) cache_->wait(layer.index, static_cast<int>(now.ffn - experts));
    gate_up(now, next_task(task));
  });
  tasks_.clear();
  if (layer.shared.width > 0)
    list_tasks(layer.shared, shared_, 0, shared_rows, kTaskPanels, layer.shared.down.panels());
  if (count > 0) list_routed(experts, visits, count, kTaskPanels, experts[visits[0].expert].down.panels());
  pool_.run(static_cast<int>(tasks_.size()), [&](int task, int) { down(tasks_[task], next_task(task)); });
  tasks_.clear();
}

// A counting sort: afterwards pair_of_[row][slot] is the place of the pair, unless that is skipped, and the pairs of
// expert e are expert_begin_[e] .. expert_begin_[e + 1].
void FeedForward::sort_pairs(int rows) {
  const int pairs = rows * active_;
  const int* expert = chosen_[0];
  int* place = pair_of_[0];
  std::fill(expert_begin_.begin(), expert_begin_.end(), 0);
  const auto for_pairs = [&](const auto& work) {
    for (int pair = 0; pair < pairs; ++pair) {
      if (expert[pair] != kSkipped) work(pair);
    }
  };
  for_pairs([&](int pair) { ++expert_begin_[expert[pair] + 1]; });
  for (int e = 0; e < experts_; ++e) expert_begin_[e + 1] += expert_begin_[e];
  for_pairs([&](int pair) { place[pair] = expert_begin_[expert[pair]]++; });   // moves each begin to its end,
  for (int e = experts_; e > 0; --e) expert_begin_[e] = expert_begin_[e - 1];  // and this moves it back
  expert_begin_[0] = 0;
}

// Cuts rows x units of one FFN into tasks.
void FeedForward::list_tasks(const Ffn& ffn, Memory& memory, int first_row, int rows, int units_per_task, int units) {
  const int pieces = divide_up(rows, kTaskRows);
  for (int piece = 0, row = first_row; piece < pieces; ++piece) {
    const int here = divide_up(first_row + rows - row, pieces - piece);
    for (int unit = 0; unit < units; unit += units_per_task) {
      tasks_.push_back({&ffn, &memory, row, row, here, unit, std::min(unit + units_per_task, units)});
    }
    row += here;
  }
}

void FeedForward::list_routed(const Ffn* experts, const Visit* visits, int count, int units_per_task, int units) {
  for (const Visit* visit = visits; visit < visits + count; ++visit) {
    list_tasks(experts[visit->expert], routed_, expert_begin_[visit->expert], visit->rows, units_per_task, units);
  }
}

// What the thread of a task is likely to take next, or null.
const FeedForward::Task* FeedForward::next_task(int task) const {
  const size_t next = static_cast<size_t>(task) + pool_.threads();
  return next < tasks_.size() ? &tasks_[next] : nullptr;
}

void FeedForward::gate_up(const Task& task, const Task* next) {
  const Ffn& ffn = *task.ffn;
  Memory& memory = *task.memory;
  const auto product = kernels_.matmul[input_form(ffn)];
  const auto swiglu = kernels_.swiglu[unit_form(ffn)];
  const size_t group_bytes = form_bytes(unit_form(ffn));
  constexpr int kWidth = kGateUpPanels * kPanel;
  float both[kTaskRows * kWidth];
  static_assert(kFewRows * kDecodeGroups <= kTaskRows);
  const int step = task.rows <= kFewRows ? kDecodeGroups : 1;
  for (int group = task.begin; group < task.end; group += step) {
    const int here = std::min(step, task.end - group), panel = group * kGateUpPanels, stride = here * kWidth;
    const Task* after = group + step < task.end ? &task : next;
    const int after_group = after == &task ? group + step : after == nullptr ? 0 : after->begin;
    const int after_end = after == nullptr ? 0 : std::min(after_group + step, after->end);
    const Matrix weights = ffn.gate_up.before(after == nullptr ? ffn.gate_up : after->ffn->gate_up,
                                              after_group * kGateUpPanels, after_end * kGateUpPanels);
    product(weights, panel, panel + here * kGateUpPanels, memory.inputs[task.input_row], memory.inputs.width(),
            task.rows, both, stride);
    for (int i = 0; i < here; ++i) {
      swiglu(both + i * kWidth, stride, task.rows, memory.hidden_units[task.row] + (group + i) * group_bytes,
             memory.hidden_units.width());
    }
  }
}

void FeedForward::down(const Task& task, const Task* next) {
  Memory& memory = *task.memory;
  const Matrix& down = task.ffn->down;
  const Matrix weights = next == nullptr ? down : down.before(next->ffn->down, next->begin, next->end);
  kernels_.matmul[unit_form(*task.ffn)](weights, task.begin, task.end, memory.hidden_units[task.input_row],
                                        memory.hidden_units.width(), task.rows,
                                        memory.outputs[task.row] + task.begin * kPanel, memory.outputs.width());
}

}  // namespace mobilemoe
