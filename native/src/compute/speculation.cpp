#include "compute/speculation.h"

#include <algorithm>
#include <chrono>

#include "compute/prompt_lookup.h"

namespace mobilemoe {
namespace {

constexpr double kMemory = 32;  // proposals that a rate remembers
constexpr double kGain = 1.03;  // times the speed without drafts: less may be an error of measurement
// Before a text has shown how often it repeats itself: by level, of the first token and of later ones. Texts of nano
// had .74 to .99 and .83 to .99 where greedy, .62 to .91 and .69 to .89 at temperature 1.
constexpr double kFirst[kLookupLevels] = {0.6, 0.65, 0.7, 0.75, 0.8, 0.9};
constexpr double kLater[kLookupLevels] = {0.75, 0.75, 0.8, 0.8, 0.85, 0.9};
constexpr double kHeadFirst = 0.5;
constexpr double kAssumed = 6;  // proposals that these count for

constexpr double kLeastChance = 0.25;  // of a guess of the head: a row costs as much, so it stops there
constexpr double kAssumedGain = 0.05, kGainMemory = 16;
constexpr int kFirstRest = 8, kLongestRest = 512;  // proposals

}  // namespace

void Speculation::Rate::note(bool is_right) {
  if (of >= kMemory) {
    right *= 1 - 1 / kMemory;
    of *= 1 - 1 / kMemory;
  }
  right += is_right ? 1 : 0;
  of += 1;
}

Speculation::Speculation(Speculate how, DraftCounts& counts)
    : how_(how), counts_(counts), draft_(std::make_unique<PromptLookup>()) {
  for (int level = 0; level < kLookupLevels; ++level) {
    rates_[level] = {kAssumed * kFirst[level], kAssumed};
    rates_[kLaterKinds + level] = {kAssumed * kLater[level], kAssumed};
  }
  for (int level = 0; level < kHeadLevels; ++level) {
    rates_[kHeadKinds + level] = {kAssumed * (level + 0.5) / kHeadLevels, kAssumed};
  }
  head_first_ = {kAssumed * kHeadFirst, kAssumed};
  head_gain_ = kAssumedGain;
}

const Proposal& Speculation::propose(const std::vector<int>& tokens, int token) {
  const size_t known = text_.size();
  if (known <= tokens.size()) {  // the prompt, or what was appended to it
    text_.insert(text_.end(), tokens.begin() + static_cast<ptrdiff_t>(known), tokens.end());
    text_.push_back(token);
  } else if (known != tokens.size() + 1 || text_.back() != token) {  // another text, or this one from an earlier place
    text_.assign(tokens.begin(), tokens.end());
    text_.push_back(token);
    draft_ = std::make_unique<PromptLookup>();
    watched_.count = 0;
  }
  proposal_ = how_ == Speculate::head ? Proposal() : draft_->propose(text_);
  run_ = taken_ = 0;
  by_head_ = false;
  return proposal_;
}

bool Speculation::asks_head() const {
  if (how_ != Speculate::automatic) return how_ == Speculate::head;
  return resting_ == 0 && (proposal_.count == 0 || chance(0) < head_first_.right / head_first_.of);
}

bool Speculation::add(const DraftHead::Guess& guess) {
  if (!by_head_) proposal_.count = 0;
  by_head_ = true;
  const bool is_number = guess.probability >= 0 && guess.probability <= 1;  // what states beyond fp32 give is none
  const int level = is_number ? std::min(static_cast<int>(guess.probability * kHeadLevels), kHeadLevels - 1) : 0;
  proposal_.add(guess.token, kHeadKinds + level);
  const bool is_likely = how_ == Speculate::head || chance(proposal_.count - 1) >= kLeastChance;
  return is_likely && proposal_.count < kMostDrafts;
}

void Speculation::judge_head(double gain) {
  head_gain_ += (gain - head_gain_) / kGainMemory;
  rest_ = head_gain_ > 0 ? 0 : std::clamp(2 * rest_, kFirstRest, kLongestRest);
  resting_ = rest_;
}

double Speculation::chance(int at) const {
  double chance = 1;
  for (int i = 0; i <= at; ++i) {
    const Rate& rate = rates_[proposal_.kinds[i]];
    chance *= rate.right / rate.of;
  }
  return chance;
}

void Speculation::run(int count) {
  run_ = count;
  resting_ = std::max(0, resting_ - 1);
  if (compared_ >= watched_.count) {
    watched_ = proposal_;
    compared_ = 0;
  }
  if (count == 0) return;
  ++counts_.passes;
  counts_.proposed += count;
}

void Speculation::take(int token) {
  text_.push_back(token);
  if (taken_ < run_ && proposal_.tokens[taken_] == token) {
    ++taken_;
    ++counts_.accepted;
  } else {
    run_ = 0;
  }
  if (compared_ >= watched_.count) return;
  const bool is_right = watched_.tokens[compared_] == token;
  const int kind = watched_.kinds[compared_];
  rates_[kind].note(is_right);
  if (compared_ == 0 && kind >= kHeadKinds) head_first_.note(is_right);
  compared_ = is_right ? compared_ + 1 : watched_.count;
}

namespace {

// The head's proposals, step by step for all texts that ask for them.
void propose_by_head(Drafting* texts, int count, DraftHead& head, bool may_pay) {
  std::vector<Drafting*> asking;
  for (Drafting* text = texts; text < texts + count; ++text) {
    const bool is_wanted = may_pay || text->speculation->how() == Speculate::head;
    if (is_wanted && text->speculation->asks_head() && text->sequence->state() != nullptr) asking.push_back(text);
  }
  const int hidden = head.hidden_size(), size = head.begin_size();
  std::vector<float> begins, states(asking.size() * hidden);
  std::vector<int> tokens;
  for (Drafting* text : asking) {
    begins.insert(begins.end(), text->sequence->state(), text->sequence->state() + size);
    tokens.push_back(text->token);
  }
  std::vector<DraftHead::Guess> guesses(asking.size());
  for (bool first = true; !asking.empty(); first = false) {
    const int here = static_cast<int>(asking.size());
    if (first)
      head.begin(begins.data(), tokens.data(), here, states.data(), guesses.data());
    else
      head.step(states.data(), tokens.data(), here, guesses.data());
    size_t left = 0;
    for (size_t i = 0; i < asking.size(); ++i) {
      if (!asking[i]->speculation->add(guesses[i])) continue;
      std::copy_n(&states[i * hidden], hidden, &states[left * hidden]);
      tokens[left] = guesses[i].token;
      asking[left++] = asking[i];
    }
    asking.resize(left);
  }
}

}  // namespace

void choose_drafts(Drafting* texts, int count, int rows, const PassCosts& costs, DraftHead* head) {
  struct Row {
    double chance;
    Drafting* text;
  };
  std::vector<Row> likeliest;
  for (Drafting* text = texts; text < texts + count; ++text) {
    text->speculation->propose(text->sequence->tokens(), text->token);
  }
  const auto start = std::chrono::steady_clock::now();
  const bool is_known = rows <= PassCosts::kMostRows && costs.is_known(rows);
  if (head != nullptr) propose_by_head(texts, count, *head, is_known);
  const std::chrono::duration<double> asked = std::chrono::steady_clock::now() - start;
  for (Drafting* text = texts; text < texts + count; ++text) {
    const Sequence& sequence = *text->sequence;
    const Proposal& proposal = text->speculation->proposal();
    const int most = std::min(proposal.count, sequence.capacity() - sequence.length() - 1);
    if (text->speculation->how() == Speculate::automatic) {
      text->drafts = 0;
      for (int at = 0; at < most; ++at) likeliest.push_back({text->speculation->chance(at), text});
    } else {
      text->drafts = std::max(0, most);
    }
  }
  std::stable_sort(likeliest.begin(), likeliest.end(), [](const Row& a, const Row& b) { return a.chance > b.chance; });
  if (!is_known) likeliest.clear();
  const double plain = costs.of(rows);
  double tokens = rows, best = kGain * rows;  // of a pass, and in the time that a pass without drafts takes
  size_t taken = 0;
  for (size_t i = 0; i < likeliest.size() && rows + static_cast<int>(i) < PassCosts::kMostRows; ++i) {
    tokens += likeliest[i].chance;
    const double in_plain = tokens * plain / costs.of(rows + static_cast<int>(i) + 1);
    if (in_plain > best) best = in_plain, taken = i + 1;
  }
  int by_head = 0;
  for (const Drafting* text = texts; text < texts + count; ++text) by_head += text->speculation->is_by_head() ? 1 : 0;
  const double asking =
      plain > 0 && by_head > 0 ? asked.count() / plain * rows / by_head : 0;  // of one text, in tokens
  for (size_t i = 0; i < taken; ++i) ++likeliest[i].text->drafts;
  // A row is paid for in tokens that plain passes would have given in its time.
  const double row_cost =
      taken == 0 ? 0 : rows * (costs.of(rows + static_cast<int>(taken)) / plain - 1) / static_cast<double>(taken);
  for (const Drafting* text = texts; text < texts + count; ++text) {
    Speculation& speculation = *text->speculation;
    if (speculation.is_by_head()) {
      double gain = -asking;
      for (int at = 0; at < text->drafts; ++at) gain += speculation.chance(at) - row_cost;
      speculation.judge_head(gain);
    }
    speculation.run(text->drafts);
  }
}

}  // namespace mobilemoe
