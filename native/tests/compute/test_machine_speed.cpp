// The limits of the machine with which speeds are compared.
#include <algorithm>
#include <chrono>
#include <functional>

#include "compute/machine_speed.h"
#include "kernel_grid.h"
#include "kernels/amx_emulated.h"

using namespace mobilemoe;

namespace {

double seconds_of(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

TEST(every_vector_instruction_set_counts_its_multiply_adds_and_scalar_has_none) {
  grid::for_each_isa([](const Kernels& kernels) {
    if (std::string(kernels.isa) == "scalar") {
      CHECK(kernels.multiply_adds == nullptr);
      return;
    }
    double count = 0;
    const double seconds = seconds_of([&] { count = kernels.multiply_adds(); });
    CHECK(count >= 1e5);
    CHECK(count / seconds < 1e14);  // one core: the compiler has not dropped the work
  });
}

#if defined(__x86_64__)

// The emulated tiles trap where their shapes would be a fault of the processor.
TEST(the_multiply_adds_of_tiles_have_shapes_that_fit_and_leave_no_tiles_behind) {
  if (find_kernels("avx512") == nullptr) return;
  CHECK_EQ(amx::emulated_kernels()->multiply_adds(), 256.0 * 4 * 16 * 16 * 64);
  CHECK(amx::emulated_tiles_are_released());
}

#endif

TEST(no_matrix_product_is_faster_than_the_integer_peak) {
  ThreadPool pool(1);
  grid::Random random(5);
  constexpr int kPanels = 4, kGroups = 24, kRows = 48;
  const grid::OwnedMatrix w = grid::random_matrix(random, Axis::in, kPanels, kGroups);
  const size_t stride = kGroups * sizeof(Block);
  const std::vector<float> x = random.activations(size_t{kRows} * kGroups * kGroup);
  std::vector<float> y(size_t{kRows} * kPanels * kPanel);
  grid::for_each_isa([&](const Kernels& kernels) {
    if (kernels.multiply_adds == nullptr) return;
    const std::vector<uint8_t> in = grid::prepared(kernels, Form::blocks, x, kGroups * kGroup, stride);
    const double products = double{kRows} * kPanels * kPanel * kGroups * kGroup;
    const auto multiply = kernels.matmul[Form::blocks];
    double peak = 0, fastest = 0;
    // On a busy machine either may be interrupted in every one of its passes: both are measured until they agree.
    for (int round = 0; round < 20 && (peak == 0 || fastest >= 1.2 * peak); ++round) {
      peak = std::max(peak, integer_peak(pool, kernels, 0.05));
      for (int repeat = 0; repeat < 50; ++repeat) {
        const double seconds =
            seconds_of([&] { multiply(w.matrix, 0, kPanels, in.data(), stride, kRows, y.data(), kPanels * kPanel); });
        fastest = std::max(fastest, products / seconds);
      }
    }
    CHECK(fastest < 1.2 * peak);
    CHECK(fastest > 0.02 * peak);
  });
}

TEST(the_integer_peak_of_scalar_kernels_is_not_known) {
  ThreadPool pool(1);
  CHECK_EQ(integer_peak(pool, *find_kernels("scalar"), 0.01), 0.0);
}

TEST(reads_are_measured_with_any_number_of_threads_and_any_size) {
  for (const int threads : {1, 2, 3}) {
    ThreadPool pool(threads);
    for (const size_t bytes : {size_t{0}, size_t{1000}, size_t{1} << 22}) {
      const double speed = read_bandwidth(pool, bytes, 0.005);
      CHECK(speed > 1e5);
      CHECK(speed < 1e13);
    }
  }
}
