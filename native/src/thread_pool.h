// Threads that share a list of tasks: each takes the next one until none is left.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace mobilemoe {

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // the caller is one of them; throws Error(usage), Error(memory)
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(task, thread) for each task in 0 .. tasks - 1, in any order, and returns when all are done.
  // `work` must not throw.
  template <class Work>
  void run(int tasks, const Work& work) {
    if (tasks <= 0) return;
    if (tasks == 1 || workers_.empty()) {
      for (int task = 0; task < tasks; ++task) work(task, 0);
      return;
    }
    start(
        tasks, [](const void* closure, int task, int thread) { (*static_cast<const Work*>(closure))(task, thread); },
        &work);
  }

 private:
  using Call = void (*)(const void*, int, int);
  void start(int tasks, Call call, const void* closure);
  void take_tasks(int thread);
  void worker(int thread);
  void join();

  std::vector<std::thread> workers_;
  Call call_ = nullptr;
  const void* closure_ = nullptr;
  int tasks_ = 0;
  alignas(64) std::atomic<int> next_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // odd: a list of tasks is open
  alignas(64) std::atomic<int> working_{0};     // workers that are looking at the list
  std::mutex mutex_;
  std::condition_variable wake_;
  std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
};

}  // namespace mobilemoe
