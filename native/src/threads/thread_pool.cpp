#include "threads/thread_pool.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <new>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "error.h"

// How a list of tasks is published: an odd epoch says that a list is open, an even one that none is. A worker enters an
// open list by raising `working` and then looking at the epoch again; the caller closes the list by raising the epoch
// and then waits until `working` is 0. So at most one of the two misses the other (both orders are sequentially
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
  __asm__ __volatile__("isb");  // empties the pipeline and so waits; most cores go straight on after a yield
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
    std::this_thread::yield();  // to other threads that want the core
  } while (std::chrono::steady_clock::now() - start < kSpin);
  return done();
}

bool is_open(uint32_t epoch) { return epoch % 2 == 1; }

}  // namespace

int count_forks() {
  static std::atomic<int> forks{0};
  static const int registered = pthread_atfork(nullptr, nullptr, [] { ++forks; });
  if (registered != 0) throw std::bad_alloc();
  return forks;
}

struct ThreadPool::Workers {
  explicit Workers(int threads);  // the caller is one of them
  ~Workers() { join(); }
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  void run(int count, Call each, const void* with);
  void take_tasks(int thread);
  void work(int thread);
  void join();

  std::vector<std::thread> workers;
  Call call = nullptr;
  const void* closure = nullptr;
  int tasks = 0;
  alignas(64) std::atomic<int> next{0};
  alignas(64) std::atomic<uint32_t> epoch{0};  // odd: a list of tasks is open
  alignas(64) std::atomic<int> working{0};     // workers that are looking at the list
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> asleep{0};
  std::atomic<bool> stop{false};
};

ThreadPool::Workers::Workers(int threads) {
  const auto refuse = [&] {
    join();
    throw Error(ErrorCode::memory, "the system refuses to start " + std::to_string(threads) + " threads");
  };
  try {
    workers.reserve(threads - 1);
    for (int thread = 1; thread < threads; ++thread) workers.emplace_back([this, thread] { work(thread); });
  } catch (const std::system_error&) {
    refuse();
  } catch (const std::bad_alloc&) {
    refuse();
  }
}

void ThreadPool::Workers::join() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    stop = true;
  }
  wake.notify_all();
  for (std::thread& worker : workers) worker.join();
  workers.clear();
}

void ThreadPool::Workers::run(int count, Call each, const void* with) {
  call = each;
  closure = with;
  tasks = count;
  next.store(0, std::memory_order_relaxed);
  ++epoch;
  if (asleep > 0) {
    // A worker that counts itself as asleep holds the mutex until it waits: taking it means that none misses the call.
    {
      const std::lock_guard<std::mutex> lock(mutex);
    }
    wake.notify_all();
  }
  take_tasks(0);
  ++epoch;
  const auto all_left = [this] { return working == 0; };
  if (spin(all_left)) return;
  while (!all_left()) std::this_thread::yield();  // with more threads than cores, they need this core to finish
}

void ThreadPool::Workers::take_tasks(int thread) {
  const int count = tasks;
  for (;;) {
    const int task = next.fetch_add(1, std::memory_order_relaxed);
    if (task >= count) return;
    call(closure, task, thread);
  }
}

void ThreadPool::Workers::work(int thread) {
  uint32_t seen = 0;
  const auto has_work = [this, &seen] {
    const uint32_t now = epoch;
    return stop || (is_open(now) && now != seen);
  };
  for (;;) {
    if (!spin(has_work)) {
      std::unique_lock<std::mutex> lock(mutex);
      ++asleep;
      wake.wait(lock, has_work);
      --asleep;
    }
    if (stop) return;
    seen = epoch;
    if (!is_open(seen)) continue;  // closed since
    ++working;
    if (epoch == seen) take_tasks(thread);
    --working;
  }
}

ThreadPool::ThreadPool(int threads, int cores)
    : threads_(threads), running_(std::min(threads, std::max(1, cores))), forks_(count_forks()) {
  if (threads < 1 || threads > kMaxThreads) {
    throw Error(ErrorCode::usage,
                "threads is " + std::to_string(threads) + ", but must be between 1 and " + std::to_string(kMaxThreads));
  }
  workers_ = std::make_unique<Workers>(running_);
}

ThreadPool::~ThreadPool() { leave(); }

// In a forked child, the parent's workers are abandoned: their threads do not exist here and cannot be joined, and
// their mutex and condition variable may be in any state.
void ThreadPool::leave() {
  if (forks_ == count_forks()) return;
  [[maybe_unused]] const Workers* abandoned = workers_.release();
}

void ThreadPool::start(int tasks, Call call, const void* closure) {
  if (forks_ != count_forks()) {
    leave();
    workers_ = std::make_unique<Workers>(running_);
    forks_ = count_forks();
  }
  workers_->run(tasks, call, closure);
}

}  // namespace mobilemoe
