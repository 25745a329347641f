// The engine without Python: for a phone's shell or a container.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <sstream>

#include "byte_level.h"
#include "compute/engine.h"
#include "compute/sampler.h"
#include "error.h"
#include "files/draft_file.h"
#include "files/open_model.h"
#include "files/repack.h"
#include "options.h"

namespace mobilemoe {
namespace {

constexpr int kWrongUsage = 2;
constexpr int kRepeats = 3;  // of the prefill that `bench` measures; it reports the fastest
const std::vector<std::string> kEngineOptions = {"--threads", "--kv", "--isa"};

const char kHelp[] = R"(mobilemoe-cli: small mixture-of-experts language models, INT4 all the way

  mobilemoe-cli run MODEL --ids 1,2,3 [--max-new-tokens 64] [--speculate auto]
      Continues the token ids greedily until the model ends or N tokens are made. Prints the new ids, and their
      text where a tokenizer.json lies beside the model. Making ids of a text needs the Python package `mobilemoe`.
      --speculate auto (the default) guesses what repeats itself, or by the draft head beside the model, where that
      is faster; off, lookup and draft (always by one of them) give the same ids.
  mobilemoe-cli bench MODEL [--prefill 512] [--decode 64] [--depth 0]
      Tokens per second on fixed pseudo-random ids; the last line is a JSON object.
  mobilemoe-cli repack FOLDER FILE
      Rewrites a checkpoint as an engine file, which opens at once and is not copied into memory.

MODEL is an engine file or a checkpoint's folder. run and bench also take
  --threads N   0, the default: one for each fast physical core
  --kv KIND     int8 (the default) or f16: how keys and values are kept
  --isa NAME    an instruction set instead of the best one
)";

std::vector<std::string> with_engine_options(std::vector<std::string> known) {
  known.insert(known.end(), kEngineOptions.begin(), kEngineOptions.end());
  return known;
}

std::unique_ptr<Engine> open_engine(const Options& options) {
  const std::string kv = options.text("--kv", "int8");
  if (kv != "int8" && kv != "f16") {
    throw Error(ErrorCode::usage, "--kv is \"" + kv + "\", but must be int8 or f16");
  }
  const std::string isa = options.text("--isa", "");
  if (!isa.empty()) setenv("MOBILEMOE_ISA", isa.c_str(), 1);
  EngineOptions wanted;
  wanted.threads = options.number("--threads", 0, 0);
  wanted.kv = kv == "int8" ? KvType::int8 : KvType::f16;
  return std::make_unique<Engine>(open_model(options.argument(0)), wanted);
}

// Null where the text is to be written without drafts.
std::unique_ptr<Speculation> new_speculation(Engine& engine, const Options& options) {
  const std::string how = options.text("--speculate", "auto");
  if (how == "off") return nullptr;
  if (how == "auto") return engine.new_speculation(Speculate::automatic);
  if (how == "lookup") return engine.new_speculation(Speculate::lookup);
  if (how != "draft") {
    throw Error(ErrorCode::usage, "--speculate is \"" + how + "\", but must be auto, off, lookup or draft");
  }
  if (!engine.has_head())
    throw Error(ErrorCode::usage, "--speculate is draft, but no draft head lies beside the model");
  return engine.new_speculation(Speculate::head);
}

std::vector<int> parse_ids(const std::string& text) {
  std::vector<int> ids;
  std::istringstream stream(text);
  for (std::string id; std::getline(stream, id, ',');) ids.push_back(parse_number(id, "an id of --ids", 0));
  if (ids.empty()) throw Error(ErrorCode::usage, "--ids is missing: the prompt's token ids, like 1,2,3");
  return ids;
}

void append(Engine& engine, Sequence& sequence, const std::vector<int>& tokens, std::vector<float>& logits) {
  Request request;
  request.sequence = &sequence;
  request.tokens = tokens.data();
  request.count = static_cast<int>(tokens.size());
  engine.forward(&request, 1, logits.data());
}

std::vector<float> new_logits(const Engine& engine) {
  return std::vector<float>(static_cast<size_t>(engine.model().config.vocab_size));
}

void run(const std::vector<std::string>& words) {
  const Options options(words, {"MODEL"}, with_engine_options({"--ids", "--max-new-tokens", "--speculate"}));
  std::vector<int> step = parse_ids(options.text("--ids", ""));
  const int most = options.number("--max-new-tokens", 64, 1);
  const std::filesystem::path path = options.argument(0);
  const auto folder = std::filesystem::is_directory(path) ? path : path.parent_path();
  const ByteLevelVocabulary vocabulary((folder / "tokenizer.json").string());
  const std::unique_ptr<Engine> engine = open_engine(options);
  const std::filesystem::path draft = folder / "draft.safetensors";
  if (std::filesystem::exists(draft)) engine->use_head(read_draft_file(draft.string(), engine->model().config));
  const std::unique_ptr<Sequence> sequence = engine->new_sequence(0);
  const std::unique_ptr<Speculation> speculation = new_speculation(*engine, options);
  const Config& config = engine->model().config;
  Sampler sampler({}, config.vocab_size);
  Step next;
  next.sequence = sequence.get();
  next.sampler = &sampler;
  next.speculation = speculation.get();
  std::vector<int> made;
  for (bool ended = false; !ended;) {
    next.tokens = step.data();
    next.count = static_cast<int>(step.size());
    engine->step(&next, 1);
    for (auto token = next.chosen.begin(); token != next.chosen.end() && !ended; ++token) {
      ended = std::find(config.eos_token_id.begin(), config.eos_token_id.end(), *token) != config.eos_token_id.end();
      if (ended) break;
      std::printf("%s%d", made.empty() ? "" : ",", *token);
      made.push_back(*token);
      ended = static_cast<int>(made.size()) == most;
    }
    std::fflush(stdout);
    step = {next.chosen.back()};
  }
  std::printf("\n");
  if (!vocabulary.is_empty()) std::printf("%s\n", vocabulary.decode(made).c_str());
}

// The same ids on every machine, spread over the vocabulary so that all experts get work.
std::vector<int> random_ids(int count, int vocab_size) {
  std::vector<int> ids;
  uint64_t state = 1;
  for (int i = 0; i < count; ++i) {
    state = state * 6364136223846793005U + 1442695040888963407U;
    ids.push_back(static_cast<int>((state >> 33) % static_cast<uint64_t>(vocab_size)));
  }
  return ids;
}

template <class Work>
double seconds(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

void bench(const std::vector<std::string>& words) {
  const Options options(words, {"MODEL"}, with_engine_options({"--prefill", "--decode", "--depth"}));
  const int prefill = options.number("--prefill", 512, 1);
  const int decode = options.number("--decode", 64, 1);
  const int depth = options.number("--depth", 0, 0);
  const std::unique_ptr<Engine> engine = open_engine(options);
  const std::unique_ptr<Sequence> sequence = engine->new_sequence(0);
  const int vocab_size = engine->model().config.vocab_size;
  std::vector<float> logits = new_logits(*engine);

  const std::vector<int> prompt = random_ids(prefill, vocab_size);
  double best = 0;
  for (int i = 0; i < kRepeats; ++i) {
    sequence->truncate(0);
    best = std::max(best, prefill / seconds([&] { append(*engine, *sequence, prompt, logits); }));
  }
  std::printf("prefill %d: %.1f tok/s\n", prefill, best);

  const std::vector<int> steps = random_ids(depth + decode, vocab_size);
  sequence->truncate(0);
  if (depth > 0) append(*engine, *sequence, {steps.begin(), steps.begin() + depth}, logits);
  const double speed = decode / seconds([&] {
                         for (int i = depth; i < depth + decode; ++i) append(*engine, *sequence, {steps[i]}, logits);
                       });
  std::printf("decode at %d: %.1f tok/s\n", depth, speed);
  std::printf(
      "{\"prefill\": [{\"tokens\": %d, \"tok_s\": %.2f}], \"decode\": [{\"depth\": %d, \"tok_s\": %.2f}], "
      "\"threads\": %d, \"isa\": \"%s\"}\n",
      prefill, best, depth, speed, engine->threads(), engine->isa());
}

void repack(const std::vector<std::string>& words) {
  const Options options(words, {"FOLDER", "FILE"}, {});
  write_engine_file(options.argument(0), options.argument(1), nullptr, nullptr, nullptr);
}

void call(const std::string& verb, const std::vector<std::string>& words) {
  if (verb == "run") return run(words);
  if (verb == "bench") return bench(words);
  if (verb == "repack") return repack(words);
  throw Error(ErrorCode::usage, "there is no verb \"" + verb + "\": see --help");
}

}  // namespace
}  // namespace mobilemoe

int main(int argc, char** argv) {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.empty() || std::find(words.begin(), words.end(), "--help") != words.end()) {
    std::fputs(mobilemoe::kHelp, words.empty() ? stderr : stdout);
    return words.empty() ? mobilemoe::kWrongUsage : 0;
  }
  try {
    mobilemoe::call(words[0], {words.begin() + 1, words.end()});
    return 0;
  } catch (const mobilemoe::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.code() == mobilemoe::ErrorCode::usage ? mobilemoe::kWrongUsage : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "mobilemoe-cli failed: %s\n", error.what());
    return 1;
  }
}
