// Whole operators against float64 on their own input, for every instruction set of this machine. Attention has a file
// of its own.
#include "compute/feed_forward.h"
#include "float64_layer.h"
#include "kernel_grid.h"

using namespace mobilemoe;
using namespace mobilemoe::exact;

namespace {

constexpr double kInt8Cosine = 0.9995;  // at least, of every row
constexpr double kFp32Error = 1e-5;     // at most, of every element against the row's largest
constexpr Axis kAxes[] = {Axis::in, Axis::out};

double cosine(const float* a, const Doubles& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double x = static_cast<double>(a[i]);
    ab += x * b[i], aa += x * x, bb += b[i] * b[i];
  }
  return ab / std::sqrt(aa * bb);
}

double error(const float* a, const Doubles& b) {
  double worst = 0, largest = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    worst = std::max(worst, std::fabs(static_cast<double>(a[i]) - b[i]));
    largest = std::max(largest, std::fabs(b[i]));
  }
  return worst / largest;
}

void check_row(const float* got, const Doubles& wanted, bool fp32) {
  if (fp32) {
    CHECK_NEAR(error(got, wanted), 0, kFp32Error);
  } else {
    CHECK_NEAR(cosine(got, wanted), 1, 1 - kInt8Cosine);
  }
}

// Normal activations of which every 50th channel is `outlier` times as large, as residual streams have them.
Floats activations(int rows, int width, float size_of_all, float outlier, unsigned seed) {
  std::mt19937 random(seed);
  Floats x = normal(rows * width, size_of_all, random);
  for (int i = 0; i < rows * width; ++i) {
    if (i % width % 50 == 7) x[size(i)] *= outlier;
  }
  return x;
}

Config family(Axis axis) {
  Config config;
  config.hidden_size = 160;
  config.intermediate_size = 96;
  config.intermediate_size_mlp = 192;
  config.num_local_experts = 18;
  config.num_experts_per_tok = 4;
  config.expert_axis = axis;
  return config;
}

Config like_olmoe(Axis axis) {
  Config config = family(axis);
  config.intermediate_size_mlp = 0;
  config.router_score = RouterScore::softmax;
  config.norm_topk_prob = false;
  config.routed_scaling_factor = 1;
  return config;
}

Config dense() {
  Config config = family(Axis::in);
  config.is_moe = false;
  config.intermediate_size = 224;
  return config;
}

struct Scene {
  Config config;
  ExactLayer layer;
  Floats x;  // small, so that what the operator adds to it keeps its digits
  int rows;

  Scene(const Config& config_, int rows_, unsigned seed)
      : config(config_),
        layer(config_, seed),
        x(activations(rows_, config_.hidden_size, 0.01f, 2, seed)),
        rows(rows_) {}

  size_t width() const { return size(config.hidden_size); }

  // The operator's result for all rows, `at_once` of them in one call.
  Floats run(const Kernels& kernels, bool fp32, int threads, int at_once,
             const std::vector<RoutingHooks>* hooks = nullptr) const {
    ThreadPool pool(threads);
    FeedForward feed_forward(config, kernels, pool, fp32);
    Floats out = x;
    for (int row = 0; row < rows; row += at_once) {
      feed_forward.run(layer.weights(), std::min(at_once, rows - row), &out[size(row) * width()],
                       hooks == nullptr ? nullptr : hooks->data() + row);
    }
    return out;
  }

  Floats added(const Floats& out) const {
    Floats y(out.size());
    for (size_t i = 0; i < y.size(); ++i) y[i] = out[i] - x[i];
    return y;
  }
};

void check_feed_forward(const Config& config, unsigned seed) {
  const Scene scene(config, 130, seed);
  const size_t active = config.is_moe ? size(config.num_experts_per_tok) : 0;
  std::vector<Doubles> wanted;
  std::vector<int> wanted_experts;
  for (int row = 0; row < scene.rows; ++row) {
    std::vector<int> experts;
    wanted.push_back(scene.layer.run(&scene.x[size(row) * scene.width()], &experts));
    wanted_experts.insert(wanted_experts.end(), experts.begin(), experts.end());
  }
  grid::for_each_isa([&](const Kernels& kernels) {
    for (const bool fp32 : {false, true}) {
      std::vector<int> experts(size(scene.rows) * active, -1);
      std::vector<RoutingHooks> hooks(size(scene.rows));
      for (size_t row = 0; row < hooks.size(); ++row) hooks[row].chosen = experts.data() + row * active;
      const Floats together = scene.run(kernels, fp32, 3, scene.rows, active == 0 ? nullptr : &hooks);
      CHECK(experts == wanted_experts);
      const Floats y = scene.added(together);
      for (size_t row = 0; row < wanted.size(); ++row) check_row(&y[row * scene.width()], wanted[row], fp32);
      grid::check_same_bytes(scene.run(kernels, fp32, 1, 1), together, "row by row");
      grid::check_same_bytes(scene.run(kernels, fp32, 2, 7), together, "seven rows at once");
    }
  });
}

}  // namespace

TEST(linear_is_close_to_float64_for_both_axes) {
  std::mt19937 random(1);
  const int outputs = 96, inputs = 768, rows = 9;
  for (const Axis axis : kAxes) {
    const ExactMatrix w(outputs, inputs, axis, 0.02f, random);
    for (const float outlier : {1.0f, 30.0f}) {
      const Floats x = activations(rows, inputs, 1, outlier, 2);
      grid::for_each_isa([&](const Kernels& kernels) {
        for (const bool fp32 : {false, true}) {
          const Form form = fp32 ? Form::floats : axis == Axis::in ? Form::blocks : Form::scaled;
          const size_t stride = form_bytes(form) * size(inputs / kGroup);
          const auto prepared = grid::prepared(kernels, form, x, inputs, stride);
          Floats y(size(rows * outputs));
          kernels.matmul[form](w.matrix, 0, w.matrix.panels(), prepared.data(), stride, rows, y.data(), size(outputs));
          for (int row = 0; row < rows; ++row) {
            check_row(&y[size(row * outputs)], w.times(&x[size(row * inputs)]), fp32);
          }
        }
      });
    }
  }
}

TEST(experts_grouped_along_the_input_are_close_to_float64_and_the_same_row_by_row) {
  check_feed_forward(family(Axis::in), 3);
}

TEST(experts_grouped_along_the_output_are_close_to_float64_and_the_same_row_by_row) {
  check_feed_forward(family(Axis::out), 4);
}

TEST(experts_without_a_shared_one_are_close_to_float64_and_the_same_row_by_row) {
  for (const Axis axis : kAxes) check_feed_forward(like_olmoe(axis), 5);
}

TEST(a_dense_ffn_is_close_to_float64_and_the_same_row_by_row) { check_feed_forward(dense(), 6); }

TEST(forced_experts_are_the_ones_that_compute) {
  for (const Axis axis : kAxes) {
    const Scene scene(family(axis), 5, 7);
    const size_t active = size(scene.config.num_experts_per_tok);
    const std::vector<int> forced = {17, 0, 3, 5, 1, 2, 3, 4};  // of rows 1 and 3; the router chooses for the others
    grid::for_each_isa([&](const Kernels& kernels) {
      for (const int at_once : {scene.rows, 1}) {
        std::vector<int> chosen(size(scene.rows) * active, -1);
        std::vector<RoutingHooks> hooks(size(scene.rows));
        for (size_t row = 0; row < hooks.size(); ++row) {
          if (row % 2 == 1) hooks[row].forced = forced.data() + row / 2 * active;
          hooks[row].chosen = chosen.data() + row * active;
        }
        const Floats y = scene.added(scene.run(kernels, false, 2, at_once, &hooks));
        for (size_t row = 0; row < hooks.size(); ++row) {
          std::vector<int> experts;
          const Doubles wanted = scene.layer.run(&scene.x[row * scene.width()], &experts, hooks[row].forced);
          check_row(&y[row * scene.width()], wanted, false);
          CHECK(std::equal(experts.begin(), experts.end(), hooks[row].chosen));
        }
      }
    });
  }
}
