#include "compute/feed_forward.h"

#include <algorithm>
#include <cstring>

#include "compute/routing.h"
#include "compute/rows.h"

namespace mobilemoe {
namespace {

constexpr int kGateUpPanels = 4;  // 32 gates and 32 ups: what one group of hidden units is made from
constexpr int kTaskGroups = 4;    // groups of hidden units of a prefill task
constexpr int kTaskPanels = 16;   // panels of a prefill task's outputs
constexpr int kDecodePanels = 8;  // panels that one token's task takes at once: as many streams from memory
constexpr int kDecodeGroups = kDecodePanels / kGateUpPanels;

}  // namespace

FeedForward::FeedForward(const Config& config, const Kernels& kernels, ThreadPool& pool, bool fp32)
    : config_(config),
      kernels_(kernels),
      pool_(pool),
      fp32_(fp32),
      active_(config.is_moe ? config.num_experts_per_tok : 0),
      experts_(config.is_moe ? config.num_local_experts : 0),
      padded_experts_(round_up(experts_, kPanel)),
      hidden_(config.hidden_size) {}

void FeedForward::reserve(const LayerWeights& layer, int rows) {
  const auto row_bytes = [&](const Matrix& matrix) { return input_bytes(matrix, form_of(matrix, fp32_)); };
  const size_t n = static_cast<size_t>(rows), pairs = n * static_cast<size_t>(active_);
  const size_t outputs = static_cast<size_t>(round_up(hidden_, kGroup));
  grow(normed_, n * static_cast<size_t>(hidden_));
  if (layer.shared.width > 0) {
    shared_input_stride_ = row_bytes(layer.shared.gate_up);
    shared_hidden_stride_ = row_bytes(layer.shared.down);
    grow(shared_inputs_, n * shared_input_stride_);
    grow(shared_hidden_units_, n * shared_hidden_stride_);
    grow(shared_outputs_, n * outputs);
  }
  if (layer.experts.empty()) return;
  input_stride_ = row_bytes(layer.experts[0].gate_up);
  hidden_stride_ = row_bytes(layer.experts[0].down);
  grow(inputs_, pairs * input_stride_);
  grow(hidden_units_, pairs * hidden_stride_);
  grow(outputs_, pairs * outputs);
  grow(logits_, n * static_cast<size_t>(padded_experts_));
  grow(scores_, n * static_cast<size_t>(padded_experts_));
  grow(weights_, pairs);
  grow(chosen_, pairs);
  grow(pair_row_, pairs);
  grow(pair_of_, pairs);
  grow(expert_begin_, static_cast<size_t>(experts_) + 1);
}

void FeedForward::run(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks) {
  reserve(layer, rows);
  if (rows == 1) {
    decode(layer, x, hooks);
  } else {
    prefill(layer, rows, x, hooks);
  }
}

void FeedForward::route(const LayerWeights& layer, int row, const RoutingHooks* hooks) {
  const size_t r = static_cast<size_t>(row);
  const size_t at = r * static_cast<size_t>(active_), wide = r * static_cast<size_t>(padded_experts_);
  const int* forced = hooks == nullptr ? nullptr : hooks[row].forced;
  choose_experts(config_, &logits_[wide], layer.expert_bias, forced, &scores_[wide], &chosen_[at], &weights_[at]);
  if (hooks != nullptr && hooks[row].chosen != nullptr) std::copy_n(&chosen_[at], active_, hooks[row].chosen);
}

// One token: everything that its experts compute is one flat list of small tasks.
void FeedForward::decode(const LayerWeights& layer, float* x, const RoutingHooks* hooks) {
  const float eps = static_cast<float>(config_.rms_norm_eps);
  kernels_.rms_norm(x, layer.post_attention_norm, hidden_, eps, normed_.data());
  const Ffn& shared = layer.shared;
  const bool routed = experts_ > 0;
  const int shared_groups = shared.width / kGroup, groups = routed ? layer.experts[0].width / kGroup : 0;
  if (shared_groups > 0) {
    kernels_.prepare[static_cast<int>(form_of(shared.gate_up, fp32_))](normed_.data(), hidden_, shared_inputs_.data());
  }
  if (routed) {
    kernels_.prepare[static_cast<int>(form_of(layer.experts[0].gate_up, fp32_))](normed_.data(), hidden_,
                                                                                 inputs_.data());
  }
  const int router_tasks = routed ? 1 : 0;  // the router runs beside the shared expert, which does not wait for it
  pool_.run(router_tasks + divide_up(shared_groups, kDecodeGroups), [&](int task, int) {
    if (task < router_tasks) {
      kernels_.router(layer.router, padded_experts_ / kPanel, hidden_, normed_.data(), 0, 1, logits_.data());
    } else {
      const int group = (task - router_tasks) * kDecodeGroups;
      gate_up({&shared, 0, 0, 1, group, std::min(group + kDecodeGroups, shared_groups), true});
    }
  });
  if (routed) {
    route(layer, 0, hooks);
    const int tasks = divide_up(groups, kDecodeGroups);
    pool_.run(active_ * tasks, [&](int task, int) {
      const int slot = task / tasks, group = task % tasks * kDecodeGroups;
      const Ffn& expert = layer.experts[static_cast<size_t>(chosen_[static_cast<size_t>(slot)])];
      gate_up({&expert, 0, static_cast<size_t>(slot), 1, group, std::min(group + kDecodeGroups, groups), false});
    });
  }
  const int panels = routed ? layer.experts[0].down.panels() : shared.down.panels();
  const int each = std::clamp(panels / (3 * pool_.threads()) / 2 * 2, 2, kDecodePanels);  // Axis::out needs pairs
  pool_.run(divide_up(panels, each), [&](int task, int) {
    const int begin = task * each, first = begin * kPanel;
    const int count = std::min(each * kPanel, hidden_ - first);
    float y[kDecodePanels * kPanel];
    const auto add = [&](const Ffn& ffn, const uint8_t* units, float weight) {
      const int end = std::min(begin + each, ffn.down.panels());
      kernels_.matmul[static_cast<int>(form_of(ffn.down, fp32_))](ffn.down, begin, end, units, 0, 1, y, 0);
      kernels_.add_scaled(y, weight, count, x + first);
    };
    if (shared_groups > 0) add(shared, shared_hidden_units_.data(), 1.0f);
    for (size_t slot = 0; slot < static_cast<size_t>(active_); ++slot) {
      add(layer.experts[static_cast<size_t>(chosen_[slot])], &hidden_units_[slot * hidden_stride_], weights_[slot]);
    }
  });
}

// Many tokens: pairs of token and expert are sorted by expert, and each expert's tokens are one matrix product.
void FeedForward::prefill(const LayerWeights& layer, int rows, float* x, const RoutingHooks* hooks) {
  const float eps = static_cast<float>(config_.rms_norm_eps);
  const bool routed = experts_ > 0, has_shared = layer.shared.width > 0;
  const size_t hidden = static_cast<size_t>(hidden_);
  for_row_ranges(pool_, rows, [&](size_t first, size_t end) {
    for (size_t r = first; r < end; ++r) {
      float* normed = &normed_[r * hidden];
      kernels_.rms_norm(x + r * hidden, layer.post_attention_norm, hidden_, eps, normed);
      if (!has_shared) continue;
      const int form = static_cast<int>(form_of(layer.shared.gate_up, fp32_));
      kernels_.prepare[form](normed, hidden_, &shared_inputs_[r * shared_input_stride_]);
    }
    if (!routed) return;
    kernels_.router(layer.router, padded_experts_ / kPanel, hidden_, &normed_[first * hidden], hidden,
                    static_cast<int>(end - first), &logits_[first * static_cast<size_t>(padded_experts_)]);
    for (size_t r = first; r < end; ++r) route(layer, static_cast<int>(r), hooks);
  });
  if (routed) {
    sort_pairs(rows);
    const int form = static_cast<int>(form_of(layer.experts[0].gate_up, fp32_));
    for_rows(pool_, rows, [&](size_t r) {  // each token is quantised once, then copied to where its experts read
      const int* pairs = &pair_of_[r * static_cast<size_t>(active_)];
      uint8_t* first = &inputs_[static_cast<size_t>(pairs[0]) * input_stride_];
      kernels_.prepare[form](&normed_[r * hidden], hidden_, first);
      for (int slot = 1; slot < active_; ++slot) {
        std::memcpy(&inputs_[static_cast<size_t>(pairs[slot]) * input_stride_], first, input_stride_);
      }
    });
  }
  const int groups = routed ? layer.experts[0].width / kGroup : 0;
  list_tasks(layer, rows, groups, kTaskGroups, layer.shared.width / kGroup);
  pool_.run(static_cast<int>(tasks_.size()), [&](int task, int) { gate_up(tasks_[static_cast<size_t>(task)]); });
  list_tasks(layer, rows, routed ? layer.experts[0].down.panels() : 0, kTaskPanels,
             has_shared ? layer.shared.down.panels() : 0);
  pool_.run(static_cast<int>(tasks_.size()), [&](int task, int) { down(tasks_[static_cast<size_t>(task)]); });
  const size_t outputs = static_cast<size_t>(round_up(hidden_, kGroup));
  for_rows(pool_, rows, [&](size_t r) {
    float* sum = x + r * hidden;
    if (has_shared) kernels_.add_scaled(&shared_outputs_[r * outputs], 1.0f, hidden_, sum);
    for (size_t pair = r * static_cast<size_t>(active_); pair < (r + 1) * static_cast<size_t>(active_); ++pair) {
      kernels_.add_scaled(&outputs_[static_cast<size_t>(pair_of_[pair]) * outputs], weights_[pair], hidden_, sum);
    }
  });
}

// A counting sort: pair_of_[row, slot] is where the pair stands, expert e's pairs are expert_begin_[e] .. [e + 1].
void FeedForward::sort_pairs(int rows) {
  std::fill(expert_begin_.begin(), expert_begin_.end(), 0);
  const size_t pairs = static_cast<size_t>(rows) * static_cast<size_t>(active_);
  for (size_t pair = 0; pair < pairs; ++pair) ++expert_begin_[static_cast<size_t>(chosen_[pair]) + 1];
  for (size_t e = 0; e < static_cast<size_t>(experts_); ++e) expert_begin_[e + 1] += expert_begin_[e];
  for (size_t pair = 0; pair < pairs; ++pair) {
    pair_of_[pair] = expert_begin_[static_cast<size_t>(chosen_[pair])]++;  // moves each begin to its end ...
  }
  for (size_t e = static_cast<size_t>(experts_); e > 0; --e) expert_begin_[e] = expert_begin_[e - 1];  // ... and back
  expert_begin_[0] = 0;
}

// Cuts rows x units of every FFN into tasks; the shared expert, which has the most rows, comes first.
void FeedForward::list_tasks(const LayerWeights& layer, int rows, int units, int units_per_task, int shared_units) {
  tasks_.clear();
  const auto cut = [&](const Ffn& ffn, int first_row, int count, int all_units, bool shared) {
    const int pieces = divide_up(count, kTaskRows);
    for (int piece = 0, row = 0; piece < pieces; ++piece) {
      const int here = divide_up(count - row, pieces - piece);
      for (int unit = 0; unit < all_units; unit += units_per_task) {
        const int end = std::min(unit + units_per_task, all_units);
        const size_t at = static_cast<size_t>(first_row + row);
        tasks_.push_back({&ffn, at, at, here, unit, end, shared});
      }
      row += here;
    }
  };
  if (shared_units > 0) cut(layer.shared, 0, rows, shared_units, true);
  for (size_t e = 0; e < layer.experts.size(); ++e) {
    cut(layer.experts[e], expert_begin_[e], expert_begin_[e + 1] - expert_begin_[e], units, false);
  }
}

void FeedForward::gate_up(const Task& task) {
  const Matrix& matrix = task.ffn->gate_up;
  const size_t in_stride = task.shared ? shared_input_stride_ : input_stride_;
  const size_t out_stride = task.shared ? shared_hidden_stride_ : hidden_stride_;
  const uint8_t* in = (task.shared ? shared_inputs_ : inputs_).data() + task.input_row * in_stride;
  uint8_t* out = (task.shared ? shared_hidden_units_ : hidden_units_).data() + task.row * out_stride;
  const int in_form = static_cast<int>(form_of(matrix, fp32_));
  const Form out_form = form_of(task.ffn->down, fp32_);
  constexpr size_t width = kGateUpPanels * kPanel;
  float both[kTaskRows * width];
  const int step = task.rows == 1 ? kDecodeGroups : 1;
  for (int group = task.begin; group < task.end; group += step) {
    const int here = std::min(step, task.end - group), panel = group * kGateUpPanels;
    const size_t stride = static_cast<size_t>(here) * width;
    kernels_.matmul[in_form](matrix, panel, panel + here * kGateUpPanels, in, in_stride, task.rows, both, stride);
    for (size_t i = 0; i < static_cast<size_t>(here); ++i) {
      uint8_t* to = out + (static_cast<size_t>(group) + i) * form_bytes(out_form);
      kernels_.swiglu[static_cast<int>(out_form)](both + i * width, stride, task.rows, to, out_stride);
    }
  }
}

void FeedForward::down(const Task& task) {
  const Matrix& matrix = task.ffn->down;
  const size_t in_stride = task.shared ? shared_hidden_stride_ : hidden_stride_;
  const uint8_t* in = (task.shared ? shared_hidden_units_ : hidden_units_).data() + task.input_row * in_stride;
  const size_t outputs = static_cast<size_t>(round_up(hidden_, kGroup));
  float* out = (task.shared ? shared_outputs_ : outputs_).data() + task.row * outputs;
  kernels_.matmul[static_cast<int>(form_of(matrix, fp32_))](matrix, task.begin, task.end, in, in_stride, task.rows,
                                                            out + task.begin * kPanel, outputs);
}

}  // namespace mobilemoe
