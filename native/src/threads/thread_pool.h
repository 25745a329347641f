// Threads that share a list of tasks: each takes the next one until none is left. A forked child of the process has a
// pool without threads, which starts its own when it has something to do.
//
// No more threads are started than there are cores: further ones would only take turns with the others, and every list
// would have to wait for a thread that has no core at the moment.
#pragma once

#include <memory>

#include "threads/cores.h"

namespace mobilemoe {

// How many forks lie between this process and the one in which this function was first called. A forked child has none
// of its parent's threads, and locks that they held stay locked: by a changed number it can tell that it must make its
// own.
int count_forks();

class ThreadPool {
 public:
  // The caller is one of the `threads`, of which at most `cores` run. Throws Error(usage), Error(memory).
  explicit ThreadPool(int threads, int cores = allowed_cores());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }  // as requested: work is divided for so many

  // Calls work(task, thread) for each task in 0 .. tasks - 1, in any order, and returns when all are done.
  // `work` must not throw.
  template <class Work>
  void run(int tasks, const Work& work) {
    if (tasks <= 0) return;
    if (tasks == 1 || running_ == 1) {
      for (int task = 0; task < tasks; ++task) work(task, 0);
      return;
    }
    start(
        tasks, [](const void* closure, int task, int thread) { (*static_cast<const Work*>(closure))(task, thread); },
        &work);
  }

 private:
  using Call = void (*)(const void*, int, int);
  struct Workers;  // the threads, and what they and the caller share
  void start(int tasks, Call call, const void* closure);
  void leave();

  const int threads_;
  const int running_;
  std::unique_ptr<Workers> workers_;
  int forks_;  // of this process when the workers were started: a forked child has none of their threads
};

}  // namespace mobilemoe
