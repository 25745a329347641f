// The choice of instruction sets, fp16, and the kernels that work element by element.
#include <cstdlib>

#include "kernel_grid.h"
#include "kernels/half.h"

using namespace mobilemoe;
using namespace mobilemoe::grid;

namespace {

class IsaVariable {
 public:
  explicit IsaVariable(const char* value) {
    const char* old = std::getenv("MOBILEMOE_ISA");
    if (old != nullptr) old_ = old;
    had_one_ = old != nullptr;
    setenv("MOBILEMOE_ISA", value, 1);
  }
  ~IsaVariable() {
    if (had_one_) {
      setenv("MOBILEMOE_ISA", old_.c_str(), 1);
    } else {
      unsetenv("MOBILEMOE_ISA");
    }
  }

 private:
  std::string old_;
  bool had_one_;
};

}  // namespace

TEST(every_available_instruction_set_is_found_by_its_name_and_the_reference_is_last) {
  const char* last = nullptr;
  for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
    const Kernels* kernels = find_kernels(*isa);
    CHECK(kernels != nullptr);
    CHECK_EQ(std::string(kernels->isa), std::string(*isa));
    last = *isa;
  }
  CHECK_EQ(std::string(last), std::string("scalar"));
  CHECK(find_kernels("abacus") == nullptr);
}

TEST(the_environment_chooses_the_instruction_set_and_an_unknown_one_is_refused) {
  {
    const IsaVariable variable("scalar");
    CHECK_EQ(std::string(choose_kernels().isa), std::string("scalar"));
  }
  {
    const IsaVariable variable("");
    CHECK_EQ(std::string(choose_kernels().isa), std::string(available_kernels()[0]));
  }
  const IsaVariable variable("abacus");
  CHECK_THROWS_SAYING(choose_kernels(), ErrorCode::usage, "abacus");
  CHECK_THROWS_SAYING(choose_kernels(), ErrorCode::usage, "scalar");
}

TEST(fp16_of_the_reference_rounds_to_nearest_even_and_returns_every_value) {
  for (unsigned half = 0; half < 0x10000; ++half) {
    const float x = half_to_float(static_cast<uint16_t>(half));
    CHECK_EQ(std::isnan(x), (half & 0x7fff) > 0x7c00);
    if (!std::isnan(x)) CHECK_EQ(float_to_half(x), half);
  }
  CHECK_EQ(half_to_float(0x3555), 0.333251953125f);
  CHECK_EQ(float_to_half(65519.9f), 0x7bff);
  CHECK_EQ(float_to_half(65520.0f), 0x7c00);
  CHECK_EQ(float_to_half(1.0f + 0x1p-11f), 0x3c00);  // a tie, down to even
  CHECK_EQ(float_to_half(1.0f + 0x3p-11f), 0x3c02);  // a tie, up to even
  CHECK_EQ(float_to_half(0x1p-25f), 0);              // a tie between 0 and the least subnormal
  CHECK_EQ(float_to_half(0x1.8p-25f), 1);
  CHECK_EQ(float_to_half(-0x1.ffcp-15f), 0x8400);  // a tie, up to the least normal
}

TEST(prepared_inputs_equal_the_reference_bit_for_bit) {
  Random random(1);
  for (const Form form : kForms)
    for (const int count : {1, 15, 31, 32, 33, 63, 64, 100, 768, 1025}) {
      const auto x = random.activations(static_cast<size_t>(count));
      const size_t bytes = form_bytes(form) * static_cast<size_t>(round_up(count, kGroup) / kGroup);
      const auto wanted = prepared(reference(), form, x, count, bytes);
      for_each_isa([&](const Kernels& kernels) {
        check_same_bytes(prepared(kernels, form, x, count, bytes), wanted, "count " + std::to_string(count));
      });
    }
}

TEST(a_prepared_block_is_within_half_a_step_of_its_input) {
  Random random(2);
  const auto x = random.activations(640);
  for_each_isa([&](const Kernels& kernels) {
    std::vector<Block> blocks(20);
    kernels.prepare[Form::blocks](x.data(), 640, blocks.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const Block& block = blocks[i / kGroup];
      CHECK_NEAR(static_cast<float>(block.q[i % kGroup]) * block.scale, x[i],
                 0.5001 * static_cast<double>(block.scale));
    }
    for (const Block& block : blocks) {
      int sum = 0;
      for (const int8_t q : block.q) sum += q;
      CHECK_EQ(block.offset, -8 * sum);
    }
  });
}

TEST(rms_norm_equals_the_reference_bit_for_bit) {
  Random random(3);
  for (const int count : {1, 5, 16, 31, 64, 100, 768, 1280}) {
    std::vector<float> x(static_cast<size_t>(count)), weight(x.size());
    for (float& value : x) value = random.uniform(-3, 3);
    for (float& value : weight) value = random.uniform(0, 2);
    for (const float* w : {static_cast<const float*>(nullptr), static_cast<const float*>(weight.data())}) {
      std::vector<float> wanted(x.size());
      reference().rms_norm(x.data(), w, count, 1e-5f, wanted.data());
      double squares = 0;
      for (const float value : x) squares += static_cast<double>(value) * static_cast<double>(value);
      const double factor = 1 / std::sqrt(squares / count + 1e-5);
      for (size_t i = 0; i < x.size(); ++i) {
        const double exact = static_cast<double>(x[i]) * factor * (w == nullptr ? 1.0 : static_cast<double>(w[i]));
        CHECK_NEAR(wanted[i], exact, 1e-6 * std::fabs(exact));
      }
      for_each_isa([&](const Kernels& kernels) {
        std::vector<float> got(x.size()), in_place = x;
        kernels.rms_norm(x.data(), w, count, 1e-5f, got.data());
        check_same_bytes(got, wanted, "rms_norm of " + std::to_string(count));
        kernels.rms_norm(in_place.data(), w, count, 1e-5f, in_place.data());
        check_same_bytes(in_place, wanted, "rms_norm in place");
      });
    }
  }
}

TEST(rope_and_add_scaled_equal_the_reference_bit_for_bit) {
  Random random(4);
  for (const int head_dim : {2, 6, 32, 64, 80})
    for (const int heads : {1, 3, 12}) {
      const int count = head_dim * heads;
      const auto x = random.activations(static_cast<size_t>(count));
      const auto y = random.activations(static_cast<size_t>(count));
      std::vector<float> turn(static_cast<size_t>(head_dim));
      for (float& value : turn) value = random.uniform(-1, 1);
      auto turned = x;
      auto added = y;
      reference().rope(turned.data(), count, head_dim, turn.data());
      reference().add_scaled(x.data(), 0.3f, count, added.data());
      for_each_isa([&](const Kernels& kernels) {
        auto got = x;
        kernels.rope(got.data(), count, head_dim, turn.data());
        check_same_bytes(got, turned, "rope of " + std::to_string(count));
        got = y;
        kernels.add_scaled(x.data(), 0.3f, count, got.data());
        check_same_bytes(got, added, "add_scaled of " + std::to_string(count));
      });
    }
}

TEST(rope_turns_every_pair_of_every_head_by_its_angle) {
  const float turn[] = {0.0f, 1.0f, 0.6f, 0.8f};
  std::vector<float> x = {1, 2, 1, 0, 3, 4, 0, 1};
  reference().rope(x.data(), 8, 4, turn);
  const float wanted[] = {-2, 1, 0.6f, 0.8f, -4, 3, -0.8f, 0.6f};
  for (size_t i = 0; i < x.size(); ++i) CHECK_EQ(x[i], wanted[i]);
}

TEST(swiglu_follows_the_exponential_closely_and_does_not_depend_on_the_number_of_rows) {
  Random random(5);
  constexpr size_t kRows = 5, kStride = 70;
  std::vector<float> gate_up(kRows * kStride);
  for (float& value : gate_up) value = random.uniform(-20, 20);
  gate_up[0] = -200;  // silu is 0 where the exponential overflows
  gate_up[1] = 200;
  for_each_isa([&](const Kernels& kernels) {
    std::vector<float> h(kRows * kGroup);
    kernels.swiglu[Form::floats](gate_up.data(), kStride, kRows, h.data(), kGroup * sizeof(float));
    for (size_t row = 0; row < kRows; ++row)
      for (size_t i = 0; i < kGroup; ++i) {
        const double gate = static_cast<double>(gate_up[row * kStride + i]);
        const double exact = gate / (1 + std::exp(-gate)) * static_cast<double>(gate_up[row * kStride + kGroup + i]);
        CHECK_NEAR(h[row * kGroup + i], exact, 1e-6 * std::fabs(exact) + 1e-30);
      }
    std::vector<float> wanted(h.size());
    reference().swiglu[Form::floats](gate_up.data(), kStride, kRows, wanted.data(), kGroup * sizeof(float));
    CHECK(h == wanted);
    for (const Form form : kForms) {
      const size_t bytes = form_bytes(form);
      std::vector<uint8_t> together(kRows * bytes), single(together.size());
      kernels.swiglu[form](gate_up.data(), kStride, kRows, together.data(), bytes);
      for (size_t row = 0; row < kRows; ++row)
        kernels.swiglu[form](gate_up.data() + row * kStride, kStride, 1, single.data() + row * bytes, bytes);
      check_same_bytes(together, single, "swiglu, one row at a time");
      check_same_bytes(together, prepared(kernels, form, h, kGroup, bytes), "swiglu against prepare");
    }
  });
}

TEST(a_sum_of_exponentials_is_that_of_double_arithmetic_and_the_same_everywhere) {
  Random random(7);
  for (const int count : {1, 16, 63, 64, 65, 1000}) {
    std::vector<float> x(static_cast<size_t>(count));
    for (float& value : x) value = random.below(20) == 0 ? -INFINITY : random.uniform(-30, 5);
    x[0] = 5;
    double sum = 0;
    for (const float value : x) sum += std::exp(static_cast<double>(value) - 5);
    for_each_isa([&](const Kernels& kernels) {
      const double found = kernels.sum_exp(x.data(), count, 5);
      CHECK_NEAR(found, sum, sum * 0x1p-22);
      CHECK_EQ(found, reference().sum_exp(x.data(), count, 5));
    });
    x[static_cast<size_t>(count) / 2] = NAN;
    for_each_isa([&](const Kernels& kernels) { CHECK(std::isnan(kernels.sum_exp(x.data(), count, 5))); });
  }
}

TEST(log_sum_exp_is_that_of_double_arithmetic) {
  Random random(6);
  for (const int count : {1, 7, 16, 33, 1000}) {
    std::vector<float> logits(static_cast<size_t>(count));
    for (float& value : logits) value = random.uniform(-30, 30);
    if (count > 7) logits[3] = -INFINITY;
    double sum = 0;
    for (const float value : logits) sum += std::exp(static_cast<double>(value));
    for_each_isa([&](const Kernels& kernels) {
      const float found = kernels.log_sum_exp(logits.data(), count);
      CHECK_NEAR(found, std::log(sum), 4e-6);
      CHECK_EQ(found, reference().log_sum_exp(logits.data(), count));
    });
  }
}

TEST(an_input_that_is_not_finite_makes_the_scale_of_its_group_nan) {
  for (const char* const* isa = available_kernels(); *isa != nullptr; ++isa) {
    const Kernels* kernels = find_kernels(*isa);
    for (const float bad : {NAN, INFINITY, -INFINITY}) {
      for (int at = 0; at < 2 * kGroup; ++at) {
        std::vector<float> x(2 * kGroup, 0.5f);
        x[at] = bad;
        Block blocks[2];
        ScaledBlock scaled[2];
        kernels->prepare[Form::blocks](x.data(), 2 * kGroup, blocks);
        kernels->prepare[Form::scaled](x.data(), 2 * kGroup, scaled);
        for (int group = 0; group < 2; ++group) {
          CHECK_EQ(std::isnan(blocks[group].scale), group == at / kGroup);
          CHECK_EQ(std::isnan(scaled[group].scale), group == at / kGroup);
        }
      }
    }
  }
}
