// Speculation: which guesses of a text's next tokens are worth a longer pass.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>

#include "compute/draft.h"
#include "compute/draft_head.h"
#include "compute/pass_costs.h"
#include "compute/sequence.h"

namespace mobilemoe {

enum class Speculate {
  automatic,  // with every source of drafts, where it pays by what was measured
  lookup,     // with all that prompt lookup proposes, whether it pays or not: for tests and measurements
  head,       // with all that the draft head proposes, likewise
};

// What became of an engine's drafts. Texts count in several threads.
struct DraftCounts {
  std::atomic<int64_t> passes{0};    // of one text, with drafts
  std::atomic<int64_t> proposed{0};  // drafts computed in them
  std::atomic<int64_t> accepted{0};  // those that were what the model chose
};

// The drafts of one text. It may be made at any time, and serves one text at a time.
class Speculation {
 public:
  Speculation(Speculate how, DraftCounts& counts);

  // Proposes what may follow the text of `tokens` and then `token`, as far as the text itself tells.
  const Proposal& propose(const std::vector<int>& tokens, int token);
  // Whether the draft head is to propose it instead.
  bool asks_head() const;
  // The head's next guess; whether one more is of use.
  bool add(const DraftHead::Guess& guess);
  const Proposal& proposal() const { return proposal_; }
  Speculate how() const { return how_; }
  bool is_by_head() const { return by_head_; }

  // The probability that the proposal is right up to and with its token `at`.
  double chance(int at) const;

  // The first `count` tokens of the proposal are in the pass that computes now.
  void run(int count);
  // Takes how many tokens asking the head is expected to have gained, its own time counted. Where it gains none on the
  // average, it is asked less and less often.
  void judge_head(double gain);

  // Takes the next token of the text, whether it was proposed or not.
  void take(int token);

 private:
  // How often proposals of one level were right: their first token, and a later one after the earlier ones were.
  struct Rate {
    double right, of;
    void note(bool is_right);
  };

  Speculate how_;
  DraftCounts& counts_;
  std::unique_ptr<Draft> draft_;
  std::vector<int> text_;
  Proposal proposal_;
  int run_ = 0, taken_ = 0;  // tokens of the proposal that the pass holds, and of the text since it was made
  Proposal watched_;         // one whose tokens are compared with the text, run or not, and how many of them were
  int compared_ = 0;
  std::array<Rate, kDraftKinds> rates_;
  double head_gain_;            // tokens that a proposal of the head gains, lately
  Rate head_first_;             // first tokens of the head, whatever its probability
  bool by_head_ = false;        // whether the proposal is the head's
  int resting_ = 0, rest_ = 0;  // proposals for which the head is not asked, of those that it rests when it has failed
};

// A text of the next pass, which appends `token` to the sequence.
struct Drafting {
  Speculation* speculation;
  const Sequence* sequence;
  int token;
  int drafts = 0;  // how many of its proposal's tokens the pass is to hold too
};

// Proposes drafts for all texts, and chooses those with which a pass gives the most tokens a second; without them it
// would have `rows` rows. `head` may be null.
void choose_drafts(Drafting* texts, int count, int rows, const PassCosts& costs, DraftHead* head = nullptr);

}  // namespace mobilemoe
