// Attention against a plain softmax in float64, for every instruction set of this machine.
#include <cmath>
#include <vector>

#include "check.h"
#include "kernel_grid.h"
#include "kernels/attention_scene.h"
#include "kernels/dispatch.h"

using namespace mobilemoe;
using namespace mobilemoe::scene;

namespace {

template <class A, class B>
double cosine(const A* a, const B* b, int count) {
  double ab = 0, aa = 0, bb = 0;
  for (int i = 0; i < count; ++i) {
    const double x = static_cast<double>(a[i]), y = static_cast<double>(b[i]);
    ab += x * y, aa += x * x, bb += y * y;
  }
  return ab / std::sqrt(aa * bb);
}

Floats joined(const Floats& a, const Floats& b) {
  Floats all = a;
  all.insert(all.end(), b.begin(), b.end());
  return all;
}

// With an int8 cache the direction of the result is checked, with the others every element.
void check_exact(const Scene& scene) {
  const Floats answer = scene.answer();
  for (int row = 0; row < scene.rows(); ++row) {
    const float* found = answer.data() + row * scene.head_dim;
    const std::vector<double> exact = scene.exact(row);
    if (scene.type == KvType::int8) {
      CHECK(cosine(found, exact.data(), scene.head_dim) >= 0.9995);
      continue;
    }
    for (int i = 0; i < scene.head_dim; ++i) {
      CHECK_NEAR(found[i], exact[size(i)], scene.type == KvType::f16 ? 1e-3 : 1e-5);
    }
  }
}

// Every position of a prompt's tail, for two heads of a KV group, token by token.
std::vector<int> tail(int length, int tokens) {
  std::vector<int> positions;
  for (int t = std::max(0, length - tokens); t < length; ++t) positions.insert(positions.end(), 2, t);
  return positions;
}

}  // namespace

TEST(attention_is_a_softmax_over_all_lengths) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int length : {1, 2, 16, 63, 64, 65, 128, 200, 1000, 3000}) {
        Scene scene(kernels, type, 64, length);
        scene.ask({length - 1, length - 1, length / 2, 0, length - 1});
        check_exact(scene);
      }
    }
  });
}

TEST(attention_takes_every_even_head_dim) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : {2, 10, 16, 32, 64, 80, 96, 128, 200, 256}) {
        Scene scene(kernels, type, head_dim, 150);
        scene.ask(tail(150, 8));
        if (type == KvType::int8 &&
            head_dim < 16) {  // in so few dimensions the rounding of one element can turn the direction further
          const Floats answer = scene.answer();
          const std::vector<double> exact = scene.exact(0);
          for (int i = 0; i < head_dim; ++i) CHECK_NEAR(answer[size(i)], exact[size(i)], 0.02);
          continue;
        }
        check_exact(scene);
      }
    }
  });
}

TEST(attention_of_a_window_sees_its_keys_only) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int window : {1, 2, 63, 64, 65, 130, 500}) {
        Scene scene(kernels, type, 64, 300);
        scene.window = window;
        scene.ask({0, 1, 62, 63, 64, 127, 128, 129, 200, 298, 299});
        check_exact(scene);
      }
    }
  });
}

TEST(attention_of_a_row_is_the_same_in_every_call) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : kHeadDims) {
        Scene scene(kernels, type, head_dim, 210);
        scene.ask(tail(210, 45));
        const Floats whole = scene.answer();
        Floats one_by_one;
        for (int row = 0; row < scene.rows(); ++row) one_by_one = joined(one_by_one, scene.answer(row, row + 1));
        CHECK(same_bits(one_by_one, whole));
        for (int cut : {1, 5, 23, 24, 31, 89}) {
          CHECK(same_bits(joined(scene.answer(0, cut), scene.answer(cut, scene.rows())), whole));
        }
      }
    }
  });
}

TEST(attention_has_the_same_bits_whether_splits_of_the_keys_are_apart_or_together) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : {64, 10}) {
        Scene scene(kernels, type, head_dim, 2 * kKvSplit + 300);
        for (int window : {0, 70, 1000, kKvSplit + 5}) {
          scene.window = window;
          scene.ask({0, kKvSplit - 1, kKvSplit, kKvSplit + 30, kKvSplit + 64, 2 * kKvSplit - 1, 2 * kKvSplit,
                     scene.length - 1});
          const Floats whole = scene.answer();
          CHECK(same_bits(scene.answer_by_splits(), whole));
          Floats one_by_one;
          for (int row = 0; row < scene.rows(); ++row) one_by_one = joined(one_by_one, scene.answer(row, row + 1));
          CHECK(same_bits(one_by_one, whole));
          check_exact(scene);
        }
      }
    }
  });
}

TEST(all_instruction_sets_merge_splits_as_the_reference_does) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : {64, 10}) {
        const int length = 3 * kKvSplit - 7;
        Scene reference(grid::reference(), type, head_dim, length), scene(kernels, type, head_dim, length);
        for (int window : {0, kKvSplit + 100}) {
          reference.window = scene.window = window;
          reference.ask({length - 1, 2 * kKvSplit + 1, kKvSplit, 5});
          scene.ask(reference.position);
          CHECK(same_bits(reference.answer(), scene.answer()));
          CHECK(same_bits(reference.answer_by_splits(), scene.answer_by_splits()));
        }
      }
    }
  });
}

TEST(attention_of_a_row_ignores_the_positions_beside_it) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      Scene scene(kernels, type, 64, 400);
      for (int window : {0, 70}) {
        scene.window = window;
        scene.ask({399, 0, 130, 64, 5, 399, 200, 63});
        Floats one_by_one;
        for (int row = 0; row < scene.rows(); ++row) one_by_one = joined(one_by_one, scene.answer(row, row + 1));
        CHECK(same_bits(one_by_one, scene.answer()));
      }
    }
  });
}

TEST(attention_ignores_what_lies_beyond_a_position) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : kHeadDims) {
        for (int length : {1, 37, 64, 100}) {
          Scene clean(kernels, type, head_dim, length);
          Scene stale(kernels, type, head_dim, length, 0xff);  // every float of it is NaN
          clean.ask(tail(length, 9));
          stale.ask(tail(length, 9));
          CHECK(same_bits(clean.answer(), stale.answer()));

          Scene longer(kernels, type, head_dim, length + 90);
          longer.k = joined(clean.k, normal(90 * head_dim, 8)), longer.v = joined(clean.v, normal(90 * head_dim, 9));
          for (int t = 0; t < longer.length; ++t) longer.append(t);
          longer.ask(tail(length, 9));
          CHECK(same_bits(clean.answer(), longer.answer()));
        }
      }
    }
  });
}

TEST(attention_shows_nan_to_those_rows_only_that_see_it) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (bool in_key : {false, true}) {
        Scene scene(kernels, type, 64, 100);
        scene.ask({99, 69, 70, 71, 10});
        const Floats before = scene.answer();
        (in_key ? scene.k : scene.v)[70 * 64 + 33] = std::numeric_limits<float>::quiet_NaN();
        scene.append(70);
        const Floats after = scene.answer();
        for (int row : {0, 2, 3}) CHECK(std::isnan(after[size(row * 64 + 33)]));
        for (int row : {1, 4}) {
          CHECK(std::memcmp(before.data() + row * 64, after.data() + row * 64, 64 * sizeof(float)) == 0);
        }
      }
    }
  });
}

TEST(attention_of_zeros_and_of_tiny_numbers_is_finite) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (float value : {0.0f, 1e-38f, 1e-42f}) {
        Scene scene(kernels, type, 64, 70);
        scene.k.assign(scene.k.size(), value);
        scene.v.assign(scene.v.size(), value);
        for (int t = 0; t < scene.length; ++t) scene.append(t);
        scene.ask({69, 3});
        scene.q.assign(scene.q.size(), value);
        for (float x : scene.answer()) CHECK_NEAR(x, value, 1e-37);
      }
    }
  });
}

TEST(attention_weighs_a_single_dominant_key) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      Scene scene(kernels, type, 64, 300);
      scene.ask({299, 299});
      for (int i = 0; i < 64; ++i) scene.q[size(i)] = 10 * scene.k[size(17 * 64 + i)];  // its score is 80
      check_exact(scene);
    }
  });
}

TEST(all_instruction_sets_attend_as_the_reference_does) {
  grid::for_each_isa([](const Kernels& kernels) {
    for (KvType type : kTypes) {
      for (int head_dim : kHeadDims) {
        Scene reference(grid::reference(), type, head_dim, 333), scene(kernels, type, head_dim, 333);
        CHECK(reference.blocks == scene.blocks);
        reference.ask(tail(333, 20));
        scene.ask(tail(333, 20));
        const Floats a = reference.answer(), b = scene.answer();
        CHECK(a == b);
      }
    }
  });
}

TEST(int8_keys_and_values_are_rounded_to_the_nearest_of_255) {
  grid::for_each_isa([](const Kernels& kernels) {
    Scene scene(kernels, KvType::int8, 80, 70);
    const uint8_t* block = scene.blocks.data() + scene.block_bytes();  // tokens 64 ..
    const auto* scales = reinterpret_cast<const float*>(block + 2 * 80 * kKvBlock);
    const auto* offsets = reinterpret_cast<const int32_t*>(scales + 2 * kKvBlock);
    for (int slot = 0; slot < 6; ++slot) {
      const size_t token = size((64 + slot) * 80);
      int total = 0;
      for (int i = 0; i < 80; ++i) {
        const auto k = static_cast<int8_t>(block[(i / 4 * 64 + slot) * 4 + i % 4]);
        const auto v = static_cast<int8_t>(block[80 * 64 + (slot / 4 * 80 + i) * 4 + slot % 4]);
        const float k_scale = scales[slot], v_scale = scales[kKvBlock + slot];
        CHECK_NEAR(static_cast<float>(k) * k_scale, scene.k[token + size(i)], 0.5001 * static_cast<double>(k_scale));
        CHECK_NEAR(static_cast<float>(v) * v_scale, scene.v[token + size(i)], 0.5001 * static_cast<double>(v_scale));
        total += k;
      }
      CHECK_EQ(offsets[slot], -128 * total);
    }
  });
}
