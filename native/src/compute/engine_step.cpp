// The part of the engine that chooses tokens, and checks drafts on the way.
#include <algorithm>

#include "compute/engine.h"
#include "error.h"

namespace mobilemoe {
namespace {

// The threads of the pool share the work; null: done by the caller alone.
void choose_one(Choosing& text, int vocab_size, ThreadPool* pool) {
  for (int row = 0; row <= text.drafts; ++row) {
    const float* logits = text.logits + static_cast<size_t>(row) * vocab_size;
    text.choices.push_back(text.sampler->choose(logits, text.with_logprob, text.top, text.allowed, pool));
    const int token = text.choices.back().token;
    if (text.speculation != nullptr) text.speculation->take(token);
    if (row < text.drafts && token != text.speculation->proposal().tokens[row]) break;
  }
}

}  // namespace

void Engine::choose(Choosing* texts, int count) {
  const auto choose_next = [&](int i, ThreadPool* pool) {
    texts[i].choices.clear();
    try {
      choose_one(texts[i], model_.config.vocab_size, pool);
    } catch (...) {
      texts[i].error = std::current_exception();
    }
  };
  if (count < pool_.threads()) {  // too few for all threads: these share each of them
    for (int i = 0; i < count; ++i) choose_next(i, &pool_);
  } else {
    pool_.run(count, [&](int i, int) { choose_next(i, nullptr); });
  }
}

void Engine::step(Step* steps, int count) {
  std::vector<Request> requests(count);
  for (int i = 0; i < count; ++i) {
    if (steps[i].sampler == nullptr) throw Error(ErrorCode::usage, "a text has no sampler");
    requests[i].sequence = steps[i].sequence;
    requests[i].tokens = steps[i].tokens;
    requests[i].count = steps[i].count;
  }
  check(requests.data(), count);

  std::vector<Drafting> drafting;
  const bool reads = std::any_of(steps, steps + count, [](const Step& step) { return step.count > 1; });
  for (const Step* step = steps; step < steps + count && !reads; ++step) {
    if (step->speculation != nullptr) drafting.push_back({step->speculation, step->sequence, step->tokens[0]});
  }
  draft(drafting.data(), static_cast<int>(drafting.size()), count);

  std::vector<Choosing> texts(count);
  std::vector<std::array<int, 1 + kMostDrafts>> appended(count);
  size_t outputs = 0;
  auto drafted = drafting.begin();
  for (int i = 0; i < count; ++i) {
    texts[i].sampler = steps[i].sampler;
    if (drafted != drafting.end() && drafted->sequence == steps[i].sequence) {
      texts[i].speculation = drafted->speculation;
      texts[i].drafts = drafted++->drafts;
      appended[i][0] = steps[i].tokens[0];
      std::copy_n(texts[i].speculation->proposal().tokens.begin(), texts[i].drafts, appended[i].begin() + 1);
      requests[i].tokens = appended[i].data();
      requests[i].count = requests[i].outputs = 1 + texts[i].drafts;
    }
    outputs += static_cast<size_t>(requests[i].outputs);
  }
  const size_t vocab_size = model_.config.vocab_size;
  if (logits_.size() < outputs * vocab_size) logits_.resize(outputs * vocab_size);
  forward(requests.data(), count, logits_.data());

  const float* logits = logits_.data();
  for (int i = 0; i < count; ++i) {
    texts[i].logits = logits;
    logits += static_cast<size_t>(requests[i].outputs) * vocab_size;
  }
  choose(texts.data(), count);
  std::exception_ptr error = nullptr;
  for (int i = 0; i < count; ++i) {
    steps[i].chosen.clear();
    for (const Choice& choice : texts[i].choices) steps[i].chosen.push_back(choice.token);
    const int wrong = texts[i].drafts + 1 - std::max(1, static_cast<int>(texts[i].choices.size()));
    steps[i].sequence->truncate(steps[i].sequence->length() - wrong);
    if (texts[i].error != nullptr) error = texts[i].error;
  }
  if (error != nullptr) std::rethrow_exception(error);
}

}  // namespace mobilemoe
