#include "thread_pool.h"

#include <chrono>
#include <string>
#include <system_error>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "error.h"

// How a list of tasks is published: an odd epoch says that a list is open, an even one that none is. A worker enters an
// open list by raising working_ and then looking at the epoch again; the caller closes the list by raising the epoch
// and then waits until working_ is 0. So at most one of the two misses the other (both orders are sequentially
// consistent): a worker that comes late leaves without touching the list, and the caller need not wait for workers that
// sleep or have no core to run on.

namespace mobilemoe {
namespace {

constexpr int kMaxThreads = 1024;
constexpr auto kSpin = std::chrono::microseconds(80);  // longer than the gaps between the steps of one token
constexpr int kPauses = 64;                            // between two looks at the clock

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

// Spins for kSpin or until `done` is true, and returns whether it is.
template <class Done>
bool spin(const Done& done) {
  const auto start = std::chrono::steady_clock::now();
  do {
    for (int i = 0; i < kPauses; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

bool is_open(uint32_t epoch) { return epoch % 2 == 1; }

}  // namespace

ThreadPool::ThreadPool(int threads) {
  if (threads < 1 || threads > kMaxThreads) {
    throw Error(ErrorCode::usage,
                "threads is " + std::to_string(threads) + ", but must be between 1 and " + std::to_string(kMaxThreads));
  }
  try {
    workers_.reserve(static_cast<size_t>(threads - 1));
    for (int thread = 1; thread < threads; ++thread) workers_.emplace_back([this, thread] { worker(thread); });
  } catch (const std::system_error&) {
    join();
    throw Error(ErrorCode::memory, "the system refuses to start " + std::to_string(threads) + " threads");
  }
}

ThreadPool::~ThreadPool() { join(); }

void ThreadPool::join() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
}

void ThreadPool::start(int tasks, Call call, const void* closure) {
  call_ = call;
  closure_ = closure;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  ++epoch_;
  if (asleep_ > 0) {
    // Whoever counted itself as asleep holds the mutex until it waits: taking it means that none misses the call.
    {
      const std::lock_guard<std::mutex> lock(mutex_);
    }
    wake_.notify_all();
  }
  take_tasks(0);
  ++epoch_;
  const auto all_left = [this] { return working_ == 0; };
  if (spin(all_left)) return;
  while (!all_left()) std::this_thread::yield();  // more threads than cores: let them run
}

void ThreadPool::take_tasks(int thread) {
  const int tasks = tasks_;
  for (;;) {
    const int task = next_.fetch_add(1, std::memory_order_relaxed);
    if (task >= tasks) return;
    call_(closure_, task, thread);
  }
}

void ThreadPool::worker(int thread) {
  uint32_t seen = 0;
  const auto has_work = [this, &seen] {
    const uint32_t epoch = epoch_;
    return stop_ || (is_open(epoch) && epoch != seen);
  };
  for (;;) {
    if (!spin(has_work)) {
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      wake_.wait(lock, has_work);
      --asleep_;
    }
    if (stop_) return;
    seen = epoch_;
    if (!is_open(seen)) continue;  // closed since
    ++working_;
    if (epoch_ == seen) take_tasks(thread);
    --working_;
  }
}

}  // namespace mobilemoe
