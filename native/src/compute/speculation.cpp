#include "compute/speculation.h"

#include <algorithm>

#include "compute/prompt_lookup.h"

namespace mobilemoe {
namespace {

constexpr double kMemory = 32;  // proposals that a rate remembers
constexpr double kGain = 1.03;  // times the speed without drafts: less may be an error of measurement
// Before a text has shown how often it repeats itself: by level, of the first token and of later ones.
constexpr double kFirst[kDraftLevels] = {0.35, 0.4, 0.45, 0.55, 0.65, 0.75};
constexpr double kLater = 0.7;
constexpr double kAssumed = 6;  // proposals that these count for

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
  for (int level = 0; level < kDraftLevels; ++level) {
    rates_[level] = {Rate{kAssumed * kFirst[level], kAssumed}, Rate{kAssumed * kLater, kAssumed}};
  }
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
  proposal_ = draft_->propose(text_);
  run_ = taken_ = 0;
  if (compared_ >= watched_.count) {
    watched_ = proposal_;
    compared_ = 0;
  }
  return proposal_;
}

double Speculation::chance(int at) const {
  const auto& [first, later] = rates_[proposal_.level];
  double chance = first.right / first.of;
  for (int i = 0; i < at; ++i) chance *= later.right / later.of;
  return chance;
}

void Speculation::run(int count) {
  run_ = count;
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
  rates_[watched_.level][compared_ == 0 ? 0 : 1].note(is_right);
  compared_ = is_right ? compared_ + 1 : watched_.count;
}

void choose_drafts(Drafting* texts, int count, int rows, const PassCosts& costs) {
  struct Row {
    double chance;
    Drafting* text;
  };
  std::vector<Row> likeliest;
  for (Drafting* text = texts; text < texts + count; ++text) {
    const Sequence& sequence = *text->sequence;
    const Proposal& proposal = text->speculation->propose(sequence.tokens(), text->token);
    const int most = std::min(proposal.count, sequence.capacity() - sequence.length() - 1);
    if (text->speculation->how() == Speculate::automatic) {
      text->drafts = 0;
      for (int at = 0; at < most; ++at) likeliest.push_back({text->speculation->chance(at), text});
    } else {
      text->drafts = std::max(0, most);
    }
  }
  std::stable_sort(likeliest.begin(), likeliest.end(), [](const Row& a, const Row& b) { return a.chance > b.chance; });
  if (rows > PassCosts::kMostRows || !costs.is_known(rows)) likeliest.clear();
  const double plain = costs.of(rows);
  double tokens = rows, best = kGain * rows;  // of a pass, and in the time that a pass without drafts takes
  size_t taken = 0;
  for (size_t i = 0; i < likeliest.size() && rows + static_cast<int>(i) < PassCosts::kMostRows; ++i) {
    tokens += likeliest[i].chance;
    const double in_plain = tokens * plain / costs.of(rows + static_cast<int>(i) + 1);
    if (in_plain > best) best = in_plain, taken = i + 1;
  }
  for (size_t i = 0; i < taken; ++i) ++likeliest[i].text->drafts;
  for (const Drafting* text = texts; text < texts + count; ++text) text->speculation->run(text->drafts);
}

}  // namespace mobilemoe
