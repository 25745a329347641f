// The products of AMX on emulated tiles, against those of AVX-512 and the reference.
#if defined(__x86_64__)

#include <fstream>
#include <thread>

#include "kernel_grid.h"
#include "kernels/amx_emulated.h"

using namespace mobilemoe;
using namespace mobilemoe::grid;

namespace {

constexpr float kUntouched = -12345.0f;

struct Case {
  Form form;
  int panels, groups, begin, end, rows;
  bool is_padded, is_shared;

  Axis axis() const { return form == Form::blocks ? Axis::in : Axis::out; }
  std::string name() const {
    return std::string(form == Form::blocks ? "blocks, " : "scaled, ") + std::to_string(groups) + " groups, panels " +
           std::to_string(begin) + " to " + std::to_string(end) + " of " + std::to_string(panels) + ", " +
           std::to_string(rows) + " rows" + (is_padded ? ", padded" : "") + (is_shared ? ", shared" : "");
  }
};

// Both kernels on the same random input; whatever lies between the rows of y must stay as it was.
void check_equal(Random& random, const Case& c, const Kernels& kernels, const Kernels& wanted_kernels) {
  const OwnedMatrix w = random_matrix(random, c.axis(), c.panels, c.groups);
  const size_t x_stride = form_bytes(c.form) * static_cast<size_t>(c.groups) + (c.is_padded ? 48 : 0);
  const size_t y_stride = static_cast<size_t>(c.end - c.begin) * kPanel + (c.is_padded ? 5 : 0);
  const size_t rows = static_cast<size_t>(c.rows);
  const auto x = prepared(reference(), c.form, random.activations(rows * static_cast<size_t>(c.groups) * kGroup),
                          c.groups * kGroup, x_stride);
  std::vector<float> y[2];
  for (const Kernels* table : {&kernels, &wanted_kernels}) {
    auto& out = y[table == &kernels ? 0 : 1];
    out.assign(rows * y_stride, kUntouched);
    table->matmul[c.form](w.matrix, c.begin, c.end, x.data(), c.is_shared ? 0 : x_stride, c.rows, out.data(), y_stride);
  }
  check_same_bytes(y[0], y[1], c.name());
}

}  // namespace

TEST(emulated_amx_products_equal_those_of_avx512_for_any_number_of_rows_groups_and_panels) {
  const Kernels* avx512 = find_kernels("avx512");
  if (avx512 == nullptr) return;
  Random random(11);
  for (const Form form : {Form::blocks, Form::scaled}) {
    const int step = form == Form::blocks ? 1 : 2;
    for (int rows = 1; rows <= 70; ++rows)
      for (const int groups : {1, 2, 5, 16, 17, 33})
        for (const int panels : {step, 2 * step, 3 * step})
          check_equal(random, {form, panels, groups, 0, panels, rows, rows % 3 == 0, rows % 7 == 0},
                      *amx::emulated_kernels(), *avx512);
    for (int begin = 0; begin < 8; begin += step)
      for (int end = begin; end <= 8; end += step)
        check_equal(random, {form, 8, 3, begin, end, 9, true, false}, *amx::emulated_kernels(), *avx512);
  }
  CHECK(amx::emulated_tiles_are_released());
}

TEST(emulated_amx_products_equal_the_scalar_reference) {
  if (find_kernels("avx512") == nullptr) return;
  Random random(12);
  for (const Form form : {Form::blocks, Form::scaled})
    for (const int rows : {7, 8, 12, 13, 24, 25, 60})
      for (const int groups : {1, 16, 19})
        check_equal(random, {form, 4, groups, 0, 4, rows, true, false}, *amx::emulated_kernels(), reference());
}

TEST(the_start_up_check_of_amx_passes_right_sums_and_finds_wrong_ones) {
  if (find_kernels("avx512") == nullptr) return;
  CHECK(amx::emulated_is_exact());
  CHECK(!amx::damaged_is_exact());
}

#if defined(__linux__)
TEST(amx_is_offered_only_where_the_system_knows_of_it_and_works_in_every_thread) {
  std::ifstream file("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  const Kernels* kernels = find_kernels("amx");
  if (kernels == nullptr) return;
  CHECK(text.find("amx_int8") != std::string::npos);
  std::string failure;
  std::thread([&] {
    try {
      Random random(13);
      check_equal(random, {Form::blocks, 4, 17, 0, 4, 30, false, false}, *kernels, *find_kernels("avx512"));
    } catch (const check::Failure& failed) {
      failure = failed.what;
    }
  }).join();
  CHECK_EQ(failure, std::string());
}
#endif

#endif
