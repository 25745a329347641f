#include "compute/machine_speed.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>

namespace mobilemoe {
namespace {

using Clock = std::chrono::steady_clock;

constexpr size_t kLine = 64;
constexpr int kPartsPerThread = 8;  // of the buffer that is read: a thread that starts late takes fewer of them
constexpr auto kPass = std::chrono::milliseconds(2);

// Calls `work`, which returns an amount, again and again for `seconds`, and returns the highest amount per second of
// any call: other programs can only make a call slower.
template <class Work>
double best_rate(double seconds, const Work& work) {
  const auto since = [](Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  double best = 0;
  const auto start = Clock::now();
  do {
    const auto pass = Clock::now();
    const double amount = work();
    best = std::max(best, amount / since(pass));
  } while (since(start) < seconds);
  return best;
}

// Reads one word of each cache line: the time goes into fetching the line.
uint64_t read_lines(const uint8_t* from, size_t lines) {
  uint64_t sum = 0;
  for (size_t line = 0; line < lines; ++line) {
    uint64_t word;
    std::memcpy(&word, from + line * kLine, sizeof word);
    sum ^= word;
  }
  return sum;
}

}  // namespace

double read_bandwidth(ThreadPool& pool, size_t bytes, double seconds) {
  const int parts = kPartsPerThread * pool.threads();
  const size_t lines = std::max<size_t>(bytes / kLine / parts, 1);  // of each part
  const size_t total = parts * lines * kLine;
  const std::unique_ptr<uint8_t[]> buffer(new uint8_t[total]);
  const auto part = [&](int task) { return buffer.get() + task * lines * kLine; };
  // The pages are written first: all untouched pages are mapped to the same page of zeros.
  pool.run(parts, [&](int task, int) { std::memset(part(task), 1, lines * kLine); });
  std::atomic<uint64_t> sink{0};  // uses the sums, or the compiler would remove the reads
  return best_rate(seconds, [&] {
    pool.run(parts, [&](int task, int) { sink += read_lines(part(task), lines); });
    return static_cast<double>(total);
  });
}

double integer_peak(ThreadPool& pool, const Kernels& kernels, double seconds) {
  if (kernels.multiply_adds == nullptr) return 0;
  return best_rate(seconds, [&] {
    std::atomic<int64_t> total{0};
    const auto end = Clock::now() + kPass;  // the same for all threads, also for one that begins late
    pool.run(pool.threads(), [&](int, int) {
      double count = 0;
      while (Clock::now() < end) count += kernels.multiply_adds();
      total += static_cast<int64_t>(count);
    });
    return static_cast<double>(total);
  });
}

}  // namespace mobilemoe
