// Decoding and prefill take no memory from the heap once they have run at their size.
#include <atomic>
#include <cstdlib>
#include <new>

#include "check.h"
#include "compute/engine.h"
#include "files/open_model.h"

namespace {
std::atomic<long> allocations{0};
}

// Counts for the whole program; other tests do not notice.
void* operator new(size_t bytes) {
  ++allocations;
  void* memory = std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }

using namespace mobilemoe;

TEST(a_forward_pass_takes_no_memory_once_it_has_run_at_its_size) {
  EngineOptions options;
  options.threads = 2;
  Engine engine(open_model(MOBILEMOE_NANO), options);
  const auto sequence = engine.new_sequence(0);
  const std::vector<int> prompt(100, 7);
  std::vector<float> logits(static_cast<size_t>(engine.model().config.vocab_size));
  const auto run = [&](int count) {
    Request request;
    request.sequence = sequence.get();
    request.tokens = prompt.data();
    request.count = count;
    engine.forward(&request, 1, logits.data());
  };
  for (int round = 0; round < 2; ++round) {
    const long before = allocations;
    sequence->truncate(0);
    run(100);
    for (int step = 0; step < 5; ++step) run(1);
    if (round > 0) CHECK_EQ(allocations - before, 0L);
  }
}
