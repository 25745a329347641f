#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "fork.h"
#include "threads/thread_pool.h"

using mobilemoe::ErrorCode;
using mobilemoe::ThreadPool;
using mobilemoe::test::status_of_child;

TEST(every_task_runs_exactly_once_whatever_the_number_of_threads) {
  for (const int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads, threads);
    CHECK_EQ(pool.threads(), threads);
    for (const int tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      pool.run(tasks, [&](int task, int) { ++runs[task]; });
      for (const auto& count : runs) CHECK_EQ(count.load(), 1);
    }
  }
}

TEST(thread_numbers_are_below_the_number_of_threads_and_used_by_one_task_at_a_time) {
  constexpr int kThreads = 4;
  ThreadPool pool(kThreads, kThreads);
  std::vector<std::atomic<int>> busy(kThreads);
  std::atomic<bool> fine{true};
  pool.run(2000, [&](int, int thread) {
    if (thread < 0 || thread >= kThreads || busy[thread].fetch_add(1) != 0) fine = false;
    busy[thread].fetch_sub(1);
  });
  CHECK(fine);
}

TEST(what_tasks_write_is_visible_when_run_returns_and_to_the_next_list) {
  ThreadPool pool(3, 3);
  std::vector<int> now(64, 0);  // plain ints, so that ThreadSanitizer finds a missing synchronization
  std::vector<int> next(64, 0);
  for (int round = 0; round < 2000; ++round) {
    pool.run(64, [&](int task, int) {
      const auto i = static_cast<size_t>(task);
      next[i] = now[63 - i] + 1;
    });
    now.swap(next);
  }
  for (const int value : now) CHECK_EQ(value, 2000);
}

TEST(a_hundred_thousand_tiny_lists_lose_no_task) {
  ThreadPool pool(2, 2);
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 100000; ++i) {
    const int mine = i;  // is gone when the closure is: no worker may still use it
    pool.run(2, [&sum, &mine](int task, int) { sum += mine + task; });
  }
  CHECK_EQ(sum.load(), int64_t{2} * 99999 * 100000 / 2 + 100000);
}

TEST(sleeping_workers_wake_up_for_the_next_list) {
  ThreadPool pool(2, 2);
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));  // much longer than workers spin
    // Each task waits for the other one, so both threads must take part.
    std::atomic<int> arrived{0};
    pool.run(2, [&](int, int) {
      ++arrived;
      while (arrived < 2) std::this_thread::yield();
    });
    CHECK_EQ(arrived.load(), 2);
  }
}

TEST(threads_beyond_the_cores_are_not_started_and_their_number_is_kept) {
  for (const int cores : {0, 1, 3}) {  // 0 is a caller's mistake, but must not fail
    ThreadPool pool(64, cores);
    CHECK_EQ(pool.threads(), 64);
    std::vector<std::atomic<int>> of_thread(64);
    for (int round = 0; round < 50; ++round) {
      pool.run(100, [&](int, int thread) { ++of_thread[thread]; });
    }
    int sum = 0;
    for (int thread = 0; thread < 64; ++thread) {
      const int count = of_thread[thread];
      CHECK(count == 0 || thread < std::max(1, cores));
      sum += count;
    }
    CHECK_EQ(sum, 50 * 100);
  }
}

TEST(more_threads_than_cores_still_get_on) {
  ThreadPool pool(64, 64);
  std::atomic<int> sum{0};
  for (int i = 0; i < 500; ++i) {
    pool.run(128, [&](int, int) { ++sum; });
  }
  CHECK_EQ(sum.load(), 500 * 128);
}

TEST(a_task_may_use_another_pool) {
  ThreadPool outer(2, 2);
  ThreadPool first(2, 2);
  ThreadPool second(3, 3);
  std::atomic<int> sum{0};
  for (int round = 0; round < 200; ++round) {
    outer.run(2, [&](int task, int) { (task == 0 ? first : second).run(10, [&](int, int) { ++sum; }); });
  }
  CHECK_EQ(sum.load(), 200 * 20);
}

TEST(pools_are_made_and_thrown_away_without_work) {
  for (int i = 0; i < 50; ++i) {
    const ThreadPool pool(1 + i % 5, 5);
    CHECK_EQ(pool.threads(), 1 + i % 5);
  }
}

TEST(a_number_of_threads_that_means_nothing_is_refused) {
  for (const int threads : {0, -1, 100000}) {
    CHECK_THROWS_SAYING(ThreadPool(threads), ErrorCode::usage, "threads is " + std::to_string(threads));
  }
}

TEST(a_forked_child_computes_with_threads_of_its_own_and_can_throw_the_pool_away) {
  auto pool = std::make_unique<ThreadPool>(3);
  std::atomic<int> sum{0};
  const auto add = [&](int, int) { ++sum; };
  pool->run(100, add);
  std::this_thread::sleep_for(std::chrono::milliseconds(1));  // the workers sleep: the condition has waiters
  const int status = status_of_child([&] {
    auto unused = ThreadPool(2);
    pool->run(100, add);
    pool.reset();
    return sum == 200;
  });
  CHECK_EQ(status, 0);
  CHECK_EQ(status_of_child([&] { return pool.reset(), true; }), 0);
  pool->run(100, add);  // the parent's pool still works
  CHECK_EQ(sum.load(), 200);
}
