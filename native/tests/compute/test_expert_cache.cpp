// A model of whose routed experts only some are in memory computes what the whole model does.
#include <unistd.h>

#include "check.h"
#include "compute/engine.h"
#include "compute/expert_cache.h"
#include "compute/forward.h"
#include "compute/process_memory.h"
#include "files/engine_file.h"
#include "files/engine_layout.h"
#include "files/open_model.h"
#include "files/repack.h"
#include "fork.h"
#include "kernels/dispatch.h"
#include "tiny_checkpoint.h"

namespace mobilemoe {
namespace {

using tiny::config_json;
using tiny::TempFolder;
using tiny::Tiny;

const std::map<std::string, std::string> kManyExperts = {
    {"num_local_experts", "40"}, {"num_experts_per_tok", "4"}, {"num_hidden_layers", "3"}};

class EngineFile {
 public:
  explicit EngineFile(std::map<std::string, std::string> changes = {}) {
    changes.insert(kManyExperts.begin(), kManyExperts.end());
    folder_.put(Tiny(config_json(changes)));
    write_engine_file(folder_.path(), path(), nullptr, nullptr, nullptr);
  }
  std::string path() const { return folder_ / "model.mobilemoe"; }

 private:
  TempFolder folder_;
};

std::vector<int> tokens(int count, int from) {
  std::vector<int> ids;
  for (int i = 0; i < count; ++i) ids.push_back((from + i) * 7 % 50);
  return ids;
}

// Logits of passes of several lengths over one sequence. With `places` the experts come from a cache of that many.
class Runner {
 public:
  Runner(const std::string& path, int threads, size_t places)
      : model_(map_engine_file(path, places == 0)), pool_(threads, threads) {
    if (places > 0) cache_ = std::make_unique<ExpertCache>(model_, choose_kernels(), places);
    forward_ = std::make_unique<Forward>(model_, choose_kernels(), pool_, false, cache_.get());
  }

  std::vector<float> logits(const std::vector<int>& passes) {
    KvCache kv(model_.config, KvType::int8, 2048);
    std::vector<float> all;
    int position = 0;
    for (const int count : passes) {
      const std::vector<int> ids = tokens(count, position);
      const Span span = {&kv, ids.data(), count, 0, position, nullptr, nullptr};
      forward_->run(&span, 1);
      const size_t before = all.size(), vocab = model_.config.vocab_size;
      all.resize(before + vocab * count);
      for (int row = 0; row < count; ++row) forward_->logits(&row, 1, &all[before + row * vocab]);
      position += count;
    }
    return all;
  }

  ExpertCache& cache() { return *cache_; }

 private:
  Model model_;
  ThreadPool pool_;
  std::unique_ptr<ExpertCache> cache_;
  std::unique_ptr<Forward> forward_;
};

const std::vector<int> kPasses = {512, 1, 1, 1, 3, 60, 1, 1, 20, 1};

void check_same(const std::map<std::string, std::string>& changes) {
  const EngineFile file(changes);
  const std::vector<float> wanted = Runner(file.path(), 1, 0).logits(kPasses);
  for (const size_t places : {8, 9, 13, 24, 50, 119, 120, 500}) {
    for (const int threads : {1, 2, 5}) CHECK(Runner(file.path(), threads, places).logits(kPasses) == wanted);
  }
}

TEST(capped_model_computes_what_the_whole_one_does_whatever_fits_into_memory) { check_same({}); }
TEST(capped_model_with_in_grouped_experts_computes_what_the_whole_one_does) { check_same(tiny::kInAxis); }
TEST(capped_model_without_a_shared_expert_computes_what_the_whole_one_does) { check_same(tiny::kOlmoe); }

TEST(capped_model_computes_the_same_while_its_limit_changes) {
  const EngineFile file;
  const std::vector<float> wanted = Runner(file.path(), 2, 0).logits(kPasses);
  Runner runner(file.path(), 2, 60);
  for (const size_t places : {60, 8, 30, 9, 60}) {
    runner.cache().limit(places);
    CHECK(runner.cache().used_bytes() <= places * runner.cache().place_bytes());
    CHECK(runner.logits(kPasses) == wanted);
    CHECK(runner.cache().used_bytes() <= places * runner.cache().place_bytes());
  }
}

TEST(long_pass_reads_each_expert_at_most_once) {
  const EngineFile file;
  for (const size_t places : {8, 24, 60, 120}) {
    Runner runner(file.path(), 2, places);
    runner.logits({512});
    const ExpertUse use = runner.cache().use();
    CHECK_EQ(use.hits, 0u);
    CHECK(use.bytes_read >= (use.ahead + use.misses) * runner.cache().place_bytes());
    CHECK(use.bytes_read <= 120 * runner.cache().place_bytes());
  }
}

TEST(experts_that_fit_are_read_once_in_all) {
  const EngineFile file;
  Runner runner(file.path(), 2, 120);
  runner.logits(kPasses);
  CHECK(runner.cache().use().bytes_read <= 120 * runner.cache().place_bytes());
}

TEST(experts_that_are_used_often_stay_in_memory) {
  const EngineFile file;
  Runner runner(file.path(), 1, 40);
  const std::vector<int> same(30, 1);
  runner.logits(same);
  const ExpertUse before = runner.cache().use();
  runner.logits({40});  // a longer pass visits many others
  runner.logits(same);
  const ExpertUse use = runner.cache().use();
  CHECK(before.hits > 0);
  CHECK(use.hits > before.hits);
}

TEST(capped_model_whose_file_was_cut_off_fails_and_goes_on_when_it_is_whole) {
  const EngineFile file;
  const std::vector<float> wanted = Runner(file.path(), 1, 0).logits({9});
  const std::string bytes = tiny::read_file(file.path());
  Runner runner(file.path(), 2, 8);
  const Model model = map_engine_file(file.path(), false);
  CHECK_EQ(truncate(file.path().c_str(), static_cast<off_t>(bytes.size() - 60 * model.expert_source->bytes())), 0);
  CHECK_THROWS_SAYING(runner.logits({9}), ErrorCode::file, "cannot be read");
  tiny::write_file(file.path(), bytes);
  CHECK(runner.logits({9}) == wanted);
}

TEST(forked_child_goes_on_with_a_capped_model) {
  const EngineFile file;
  const std::vector<float> wanted = Runner(file.path(), 1, 0).logits({30, 1, 1});
  Runner runner(file.path(), 2, 20);
  CHECK(runner.logits({30, 1, 1}) == wanted);
  CHECK_EQ(test::status_of_child([&] { return runner.logits({30, 1, 1}) == wanted; }), 0);
  CHECK(runner.logits({30, 1, 1}) == wanted);
}

TEST(engine_with_too_little_memory_says_how_much_it_needs) {
  const EngineFile file;
  EngineOptions options;
  options.max_memory = 1000;
  CHECK_THROWS_SAYING(Engine(open_model(file.path(), false), options), ErrorCode::usage,
                      "max_memory is 1000 bytes, but the process needs at least");
  const TempFolder folder;
  folder.put(Tiny(config_json()));
  CHECK_THROWS_SAYING(open_model(folder.path(), false), ErrorCode::usage, "needs an engine file");
}

TEST(sizes_in_words_have_four_digits_and_are_rounded_down) {
  CHECK_EQ(size_text(9999), "9999 bytes");
  CHECK_EQ(size_text(83729999), "83.72 MB");
  CHECK_EQ(size_text(1235999999), "1.235 GB");
  CHECK_EQ(size_text(12345678901), "12.34 GB");
  CHECK_EQ(size_text(500000), "0.5 MB");
}

TEST(capped_file_with_a_wrong_number_of_shared_pages_is_refused) {
  const EngineFile file;
  const std::string bytes = tiny::read_file(file.path());
  for (const uint32_t pages : {0U, 1U, 5U, 1U << 20, ~0U}) {
    std::string changed = bytes;
    std::memcpy(&changed[offsetof(EngineHeader, shared_pages)], &pages, sizeof pages);
    tiny::write_file(file.path(), changed);
    CHECK_THROWS(map_engine_file(file.path(), false), ErrorCode::file);
  }
}

TEST(routed_experts_come_last_in_the_file_and_begin_at_pages) {
  const EngineLayout layout(parse_config(config_json(kManyExperts)), 192);
  CHECK_EQ(layout.shared_end() % kEnginePage, 0u);
  for (const auto& [name, section] : layout.sections()) {
    const bool is_routed = name.find(".experts") != std::string::npos;
    CHECK_EQ(section.offset >= layout.shared_end(), is_routed);
    if (is_routed) CHECK_EQ(section.offset % kEnginePage, 0u);
  }
  CHECK_EQ(expert_bytes(parse_config(config_json(kManyExperts))) % kEnginePage, 0u);
}

}  // namespace
}  // namespace mobilemoe
