// Matrix products: the reference against double arithmetic, every instruction set against the reference, and any
// number of rows against one row at a time.
#include <algorithm>

#include "kernel_grid.h"
#include "kernels/half.h"

using namespace mobilemoe;
using namespace mobilemoe::grid;

namespace {

struct Case {
  Form form;
  Axis axis;
  int panels, groups, begin, end, rows;
  bool is_padded;  // distances between rows of x and of y beyond what the rows need
  bool is_shared;  // all rows are the first one: x_stride 0

  std::string name() const {
    return "form " + std::to_string(static_cast<int>(form)) + (axis == Axis::in ? " in, " : " out, ") +
           std::to_string(groups) + " groups, panels " + std::to_string(begin) + " to " + std::to_string(end) + " of " +
           std::to_string(panels) + ", " + std::to_string(rows) + " rows" + (is_padded ? ", padded" : "") +
           (is_shared ? ", shared" : "");
  }
  size_t outputs() const { return static_cast<size_t>(end - begin) * kPanel; }
  size_t x_stride() const { return form_bytes(form) * static_cast<size_t>(groups) + (is_padded ? 48 : 0); }
  size_t y_stride() const { return outputs() + (is_padded ? 5 : 0); }
};

constexpr float kUntouched = -12345.0f;

struct Inputs {
  OwnedMatrix w;
  std::vector<uint8_t> x;
};

Inputs random_inputs(Random& random, const Case& c) {
  Inputs inputs{random_matrix(random, c.axis, c.panels, c.groups), {}};
  const auto x = random.activations(static_cast<size_t>(c.rows) * static_cast<size_t>(c.groups) * kGroup);
  inputs.x = prepared(reference(), c.form, x, c.groups * kGroup, c.x_stride());
  return inputs;
}

std::vector<float> multiply(const Kernels& kernels, const Case& c, const Inputs& inputs) {
  std::vector<float> y(c.rows * c.y_stride(), kUntouched);
  kernels.matmul[c.form](inputs.w.matrix, c.begin, c.end, inputs.x.data(), c.is_shared ? 0 : c.x_stride(), c.rows,
                         y.data(), c.y_stride());
  return y;
}

// Every combination that kernels might treat differently, without their full product.
std::vector<Case> cases() {
  struct Kind {
    Form form;
    Axis axis;
  };
  std::vector<Case> all;
  for (const Kind kind : {Kind{Form::blocks, Axis::in}, Kind{Form::scaled, Axis::out}, Kind{Form::floats, Axis::in},
                          Kind{Form::floats, Axis::out}}) {
    const int step = kind.axis == Axis::out ? 2 : 1;
    for (const int groups : {1, 2, 3, 12, 31, 32, 33})
      for (const int panels : {step, 3 * step, 4 * step})
        for (const int rows : {1, 2, 3, 5})
          all.push_back({kind.form, kind.axis, panels, groups, 0, panels, rows, groups % 2 == 1, false});
    for (int rows = 1; rows <= 40; ++rows)
      all.push_back({kind.form, kind.axis, 2 * step, 5, 0, 2 * step, rows, rows % 3 == 0, rows % 5 == 0});
    for (int rows = 1; rows <= 14; ++rows) {  // every shape of a tile, and what is left of its panels and rows
      all.push_back({kind.form, kind.axis, 15 * step, 2, 0, 15 * step, rows, rows % 2 == 0, false});
      all.push_back({kind.form, kind.axis, 8, 35, 0, 8, rows, rows % 2 == 1, rows % 4 == 0});
    }
    for (const int groups : {33, 70, 260})  // more than kernels round or rearrange at a time
      for (const int rows : {1, 2, 8, 17})
        all.push_back({kind.form, kind.axis, 2 * step, groups, 0, 2 * step, rows, false, false});
    for (int begin = 0; begin < 8; begin += step)
      for (int end = begin; end <= 8; end += step)
        all.push_back({kind.form, kind.axis, 8, 3, begin, end, 3, true, false});
  }
  return all;
}

// The weight in row `output`, column `input` as matrix.h describes it.
double weight(const Matrix& w, int output, int input) {
  const int panel = output / kPanel;
  const size_t at = static_cast<size_t>(input / 32 * 256 + input % 32 / 8 * 64 + output % 16 * 4 + input % 4);
  const int byte = w.nibbles(panel)[at];
  const int q = (input / 4 % 2 == 0 ? byte & 15 : byte >> 4) - 8;
  const int scale_at = w.axis == Axis::in ? input / 32 * 16 + output % 16 : input;
  return q * static_cast<double>(half_to_float(w.scales(panel)[scale_at]));
}

}  // namespace

TEST(products_of_the_reference_are_within_the_error_of_their_int8_inputs) {
  Random random(1);
  const int inputs = 96;
  const auto x = random.activations(inputs);
  for (const Axis axis : {Axis::in, Axis::out}) {
    for (const Form form : {axis == Axis::in ? Form::blocks : Form::scaled, Form::floats}) {
      const Case c{form, axis, 4, inputs / kGroup, 0, 4, 1, false, false};
      const Inputs given{random_matrix(random, axis, c.panels, c.groups),
                         prepared(reference(), form, x, inputs, c.x_stride())};
      const auto y = multiply(reference(), c, given);
      for (int output = 0; output < c.panels * kPanel; ++output) {
        double wanted = 0;
        double error = 0;
        for (int group = 0; group < c.groups; ++group) {
          double largest_x = 0, largest_scale = 0, weights = 0, terms = 0;
          for (int i = group * kGroup; i < (group + 1) * kGroup; ++i) {
            const double w = weight(given.w.matrix, output, i);
            const double xi = static_cast<double>(x[i]);
            wanted += w * xi;
            terms += std::fabs(w * xi);
            weights += std::fabs(w);
            largest_x = std::max(largest_x, std::fabs(xi));
            if (axis == Axis::out)
              largest_scale = std::max(
                  largest_scale, std::fabs(static_cast<double>(half_to_float(given.w.matrix.scales(output / 16)[i]))));
          }
          // Half a step of int8 for each input: of x itself, or of x times its scale, which meets |q| <= 8.
          const double step = largest_x / 127;
          if (form == Form::blocks) error += 0.501 * step * weights;
          if (form == Form::scaled) error += 0.501 * step * largest_scale * 8 * kGroup;
          error += 1e-5 * terms;
        }
        CHECK_NEAR(y[output], wanted, error);
      }
    }
  }
}

TEST(products_equal_the_reference_bit_for_bit_on_every_instruction_set) {
  Random random(2);
  for (const Case& c : cases()) {
    const Inputs inputs = random_inputs(random, c);
    const auto wanted = multiply(reference(), c, inputs);
    for_each_isa([&](const Kernels& kernels) { check_same_bytes(multiply(kernels, c, inputs), wanted, c.name()); });
  }
}

TEST(products_of_many_rows_equal_those_of_one_row_at_a_time) {
  Random random(3);
  for (const Case& c : cases()) {
    if (c.rows == 1 || c.begin != 0) continue;
    const Inputs inputs = random_inputs(random, c);
    for_each_isa([&](const Kernels& kernels) {
      const auto together = multiply(kernels, c, inputs);
      std::vector<float> single(together.size(), kUntouched);
      for (int row = 0; row < c.rows; ++row) {
        const size_t at = c.is_shared ? 0 : row * c.x_stride();
        kernels.matmul[c.form](inputs.w.matrix, c.begin, c.end, inputs.x.data() + at, c.x_stride(), 1,
                               single.data() + row * c.y_stride(), c.y_stride());
      }
      check_same_bytes(together, single, c.name());
    });
  }
}

TEST(products_do_not_depend_on_what_is_read_next) {
  Random random(6);
  for (Case c : cases()) {
    if (c.rows > 14) continue;
    Inputs inputs = random_inputs(random, c);
    const OwnedMatrix other = random_matrix(random, c.axis, 6, 7);
    for_each_isa([&](const Kernels& kernels) {
      inputs.w.matrix.next_bytes = 0;
      const auto wanted = multiply(kernels, c, inputs);
      for (const int end : {0, 2, 6, 100}) {
        inputs.w.matrix = inputs.w.matrix.before(other.matrix, 0, end);
        check_same_bytes(multiply(kernels, c, inputs), wanted, c.name());
      }
    });
  }
}

TEST(a_row_of_nan_or_infinity_leaves_the_other_rows_alone) {
  Random random(4);
  for (const Form form : kForms) {
    const Case c{form, form == Form::scaled ? Axis::out : Axis::in, 2, 3, 0, 2, 6, false, false};
    Inputs inputs = random_inputs(random, c);
    for (const float poison : {NAN, INFINITY, -INFINITY}) {
      for_each_isa([&](const Kernels& kernels) {
        const auto clean = multiply(kernels, c, inputs);
        Inputs poisoned = inputs;
        const std::vector<float> x(static_cast<size_t>(c.groups) * kGroup, poison);
        kernels.prepare[form](x.data(), c.groups * kGroup, poisoned.x.data() + 2 * c.x_stride());
        const auto y = multiply(kernels, c, poisoned);
        for (size_t i = 0; i < y.size(); ++i)
          if (i / c.y_stride() != 2) CHECK_EQ(y[i], clean[i]);
      });
    }
  }
}

TEST(router_logits_equal_the_reference_bit_for_bit_for_any_number_of_rows) {
  Random random(5);
  for (const int panels : {1, 2, 4, 5})
    for (const int inputs : {1, 3, 32, 66, 255})
      for (const int rows : {1, 2, 7}) {
        const size_t stride = static_cast<size_t>(inputs) + 3, width = static_cast<size_t>(panels) * kPanel;
        const auto weights = random.activations(static_cast<size_t>(inputs) * width);
        const auto x = random.activations(stride * static_cast<size_t>(rows));
        std::vector<float> wanted(width * static_cast<size_t>(rows));
        reference().router(weights.data(), panels, inputs, x.data(), stride, rows, wanted.data());
        for_each_isa([&](const Kernels& kernels) {
          std::vector<float> got(wanted.size()), single(wanted.size());
          kernels.router(weights.data(), panels, inputs, x.data(), stride, rows, got.data());
          check_same_bytes(got, wanted, "router");
          for (size_t row = 0; row < static_cast<size_t>(rows); ++row)
            kernels.router(weights.data(), panels, inputs, x.data() + row * stride, stride, 1,
                           single.data() + row * width);
          check_same_bytes(single, wanted, "router, one row at a time");
        });
      }
}
