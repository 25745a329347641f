// Threads that share a list of tasks: each takes the next one until none is left. A forked child of the process has a
// pool without threads, which starts its own when it has something to do.
//
// Of more threads than cores those beyond the cores are not started: they would only take turns with the others, and
// every list would wait for whichever has no core at the moment.
#pragma once

#include <memory>

#include "threads/cores.h"

namespace mobilemoe {

// How often this process was made by a fork, since the first call of this in its forefathers. What a fork leaves of
// threads, and of locks that other threads held, is of no use in the child: so it can tell.
int count_forks();

class ThreadPool {
 public:
  // The caller is one of the `threads`, of which at most `cores` run. Throws Error(usage), Error(memory).
  explicit ThreadPool(int threads, int cores = allowed_cores());
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }  // as asked for: work is cut up for so many

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
  struct Crew;  // the workers, and what they and the caller share
  void start(int tasks, Call call, const void* closure);
  void leave();

  const int threads_;
  const int running_;
  std::unique_ptr<Crew> crew_;
  int forks_;  // of this process when the crew was started: a forked child has none of its threads
};

}  // namespace mobilemoe
