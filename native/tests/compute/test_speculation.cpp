// Drafts: what is proposed, and when it is worth a longer pass.
#include <algorithm>
#include <random>

#include "check.h"
#include "compute/pass_costs.h"
#include "compute/prompt_lookup.h"
#include "compute/speculation.h"
#include "tiny_checkpoint.h"
#include "tiny_engine_file.h"

using namespace mobilemoe;

namespace {

std::vector<int> tokens_of(const Proposal& proposal) {
  return {proposal.tokens.begin(), proposal.tokens.begin() + proposal.count};
}

std::vector<int> propose(const std::vector<int>& text) { return tokens_of(PromptLookup().propose(text)); }

// The same by trying every place, with the lookup's limits: matches of 3 to 16 tokens.
std::vector<int> expected_proposal(const std::vector<int>& text) {
  const int last = static_cast<int>(text.size()) - 1;
  int place = -1, longest = 2;
  for (int at = last - 1; at >= 0; --at) {
    int length = 0;
    while (length < 16 && length <= at && text[at - length] == text[last - length]) ++length;
    if (length > longest) place = at, longest = length;
  }
  std::vector<int> text_and_drafts = text;
  for (int i = 0; place >= 0 && i < kMostDrafts; ++i) text_and_drafts.push_back(text_and_drafts[place + 1 + i]);
  return {text_and_drafts.begin() + last + 1, text_and_drafts.end()};
}

// A sequence of these tokens, of which no key or value was computed.
struct Text {
  explicit Text(const std::vector<int>& tokens, int capacity = 1000)
      : model(tiny::read_engine_file(
            tiny::engine_file(tiny::Tiny(tiny::config_json({{"max_position_embeddings", "4096"}}))))),
        sequence(model, KvType::int8, capacity) {
    sequence.append(tokens.data(), static_cast<int>(tokens.size()));
  }
  Model model;
  Sequence sequence;
};

// Costs of a machine where a pass takes this long for 1, 2 ... 5 rows, measured often.
PassCosts costs_of(const std::vector<double>& seconds) {
  PassCosts costs;
  for (int i = 0; i < 10; ++i) {
    for (size_t row = 0; row < seconds.size(); ++row) costs.note(static_cast<int>(row) + 1, seconds[row]);
  }
  return costs;
}

const std::vector<double> kCheap = {1, 1.1, 1.2, 1.3, 1.4};  // rows that cost little, and those that cost as a pass
const std::vector<double> kDear = {1, 2, 3, 4, 5};

// Writes a text of `period` tokens over and over, or random ones of 50; returns its passes of the last 100 tokens.
int passes(Speculate how, const PassCosts& costs, int period) {
  Text text({});
  DraftCounts counts;
  Speculation speculation(how, counts);
  std::mt19937 random(1);
  std::vector<int> future;
  for (int i = 0; i < 320; ++i) future.push_back(period > 0 ? i % period : static_cast<int>(random() % 50));
  int made = 0, count = 0;
  while (made < 300) {
    Drafting drafting{&speculation, &text.sequence, future[made]};
    choose_drafts(&drafting, 1, 1, costs);
    count += made >= 200 ? 1 : 0;
    for (int row = 0; row <= drafting.drafts; ++row) {
      text.sequence.append(&future[made++], 1);
      speculation.take(future[made]);
      if (row < drafting.drafts && speculation.proposal().tokens[row] != future[made]) break;
    }
  }
  return count;
}

}  // namespace

TEST(speculation_lookup_proposes_what_followed_the_longest_match) {
  CHECK(propose({}).empty());
  CHECK(propose({1, 2, 3, 4, 5, 6}).empty());
  CHECK(propose({2, 3, 9, 8, 2, 3}).empty());  // a match of two is too short
  CHECK(propose({1, 2, 3, 7, 8, 9, 5, 1, 2, 3}) == std::vector<int>({7, 8, 9, 5}));
  CHECK(propose({1, 2, 3, 7, 7, 7, 1, 2, 3, 8, 8, 8, 1, 2, 3}) == std::vector<int>({8, 8, 8, 1}));  // the latest
  CHECK(propose({0, 1, 2, 3, 7, 7, 7, 5, 1, 2, 3, 8, 8, 8, 0, 1, 2, 3}) == std::vector<int>({7, 7, 7, 5}));
  CHECK(propose({4, 4, 4, 4}) == std::vector<int>({4, 4, 4, 4}));  // goes on beyond the end
  CHECK(propose({1, 2, 1, 2, 1}) == std::vector<int>({2, 1, 2, 1}));
}

TEST(speculation_lookup_finds_in_a_growing_text_what_a_search_finds) {
  std::mt19937 random(3);
  PromptLookup lookup;
  std::vector<int> text;
  for (int i = 0; i < 700; ++i) {  // few enough of the same three tokens that all are looked at
    text.push_back(static_cast<int>(random() % 7));
    CHECK(tokens_of(lookup.propose(text)) == expected_proposal(text));
  }
}

TEST(speculation_costs_are_those_of_undisturbed_passes) {
  PassCosts costs;
  CHECK_EQ(costs.of(1), 0.0);
  CHECK(!costs.is_known(1));
  for (const double seconds : {1.0, 1.02, 9.0, 1.01, 1.0, 7.0, 1.03, 1.01}) costs.note(1, seconds);
  CHECK(costs.is_known(1));
  CHECK(costs.of(1) >= 1 && costs.of(1) <= 1.03);
  CHECK(!costs.is_known(8));
  CHECK_NEAR(costs.of(8), 2 * costs.of(1), 1e-9);  // assumed, until it is measured
  for (int i = 0; i < 3; ++i) costs.note(8, 5.0);
  CHECK_EQ(costs.of(8), 5.0);
  for (int i = 0; i < 2000; ++i) costs.note(1, 1.0);
  CHECK(!costs.is_known(8));  // long ago
  costs.note(1000, 1.0);      // not noted
}

TEST(speculation_guesses_where_a_text_repeats_itself_and_rows_are_cheap) {
  CHECK_EQ(passes(Speculate::automatic, costs_of(kCheap), 20), 20);
  CHECK_EQ(passes(Speculate::automatic, costs_of(kDear), 20), 100);
  CHECK_EQ(passes(Speculate::automatic, PassCosts(), 20), 100);  // nothing is known of the machine
  CHECK_EQ(passes(Speculate::lookup, costs_of(kDear), 20), 20);
}

TEST(speculation_stops_guessing_in_a_text_whose_repetitions_end_otherwise_each_time) {
  // Three tokens of two recur all the time, and say nothing of the next one.
  Text text({});
  DraftCounts counts;
  Speculation speculation(Speculate::automatic, counts);
  const PassCosts costs = costs_of({1, 1.6, 2, 2.4, 2.8});
  std::mt19937 random(5);
  int token = 0;
  int64_t late = 0;
  for (int i = 0; i < 600; ++i) {
    if (i == 300) late = counts.passes;
    Drafting drafting{&speculation, &text.sequence, token};
    choose_drafts(&drafting, 1, 1, costs);
    text.sequence.append(&token, 1);
    token = static_cast<int>(random() % 2);
    speculation.take(token);
  }
  CHECK(counts.passes - late <= 15);
}

TEST(speculation_shares_a_pass_among_texts_by_their_chances) {
  std::vector<int> repeated, fresh;
  for (int i = 0; i < 60; ++i) repeated.push_back(i % 6);
  for (int i = 0; i < 20; ++i) fresh.push_back(i);
  Text one(repeated), other(fresh), full(repeated, 61);
  DraftCounts counts;
  Speculation first(Speculate::automatic, counts), second(Speculate::automatic, counts),
      third(Speculate::automatic, counts);
  std::vector<double> seconds;
  for (int row = 0; row < 16; ++row) seconds.push_back(1 + 0.1 * row);
  Drafting texts[] = {{&first, &one.sequence, 0}, {&second, &other.sequence, 30}, {&third, &full.sequence, 0}};
  choose_drafts(texts, 3, 3, costs_of(seconds));
  CHECK(texts[0].drafts > 0);
  CHECK_EQ(texts[1].drafts, 0);  // nothing of it came before
  CHECK_EQ(texts[2].drafts, 0);  // its sequence has room for one token
  CHECK_EQ(counts.passes.load(), 1);
  CHECK_EQ(counts.proposed.load(), texts[0].drafts);
}

TEST(speculation_of_a_sequence_that_was_cut_goes_on_with_what_it_holds) {
  Text text({1, 2, 3, 7, 8, 9, 5, 1, 2});
  DraftCounts counts;
  Speculation speculation(Speculate::lookup, counts);
  CHECK(tokens_of(speculation.propose(text.sequence.tokens(), 3)) == std::vector<int>({7, 8, 9, 5}));
  text.sequence.truncate(5);
  CHECK(speculation.propose(text.sequence.tokens(), 7).count == 0);
  CHECK(tokens_of(speculation.propose({4, 4, 4}, 4)) == std::vector<int>({4, 4, 4, 4}));
}
