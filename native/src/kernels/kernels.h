// One table of functions per instruction set; `choose_kernels` (dispatch.h) picks it once, when an engine is opened.
//
// Every result is the same, bit for bit, for any number of rows, any split into calls, any thread and every instruction
// set: integer sums are exact, floats are added in the order of the scalar reference (kernels/scalar), and exponentials
// are computed in the same steps.
#pragma once

#include <cstddef>
#include <cstdint>

#include "model/matrix.h"

namespace mobilemoe {

// The forms in which a matrix product reads its input. All consist of groups of 32.
enum class Form : uint8_t {
  blocks,  // int8, for Axis::in: Block
  scaled,  // for Axis::out: ScaledBlock, which the kernel multiplies by the weights' scales and then rounds to int8
  floats,  // fp32: 32 floats; the weights are expanded in registers (activations="fp32")
};

// 32 inputs as int8: x = q * scale, scale = max|x| / 127, q rounded to nearest even.
struct Block {
  int8_t q[kGroup];
  float scale;
  int32_t offset;  // -8 * sum(q): cancels what the nibbles' offset of 8 adds to a dot product
};

// 32 inputs in units of their scale: x = v * scale, scale = max|x| / 127, so |v| <= 127, not rounded yet.
struct ScaledBlock {
  float v[kGroup];
  float scale;
  float unused[3];
};

constexpr size_t form_bytes(Form form) {
  return form == Form::blocks ? sizeof(Block) : form == Form::scaled ? sizeof(ScaledBlock) : kGroup * sizeof(float);
}

// The form in which a product with this matrix reads its input; `fp32`: activations are not rounded.
constexpr Form form_of(const Matrix& matrix, bool fp32) {
  if (fp32) return Form::floats;
  return matrix.axis == Axis::in ? Form::blocks : Form::scaled;
}

// The size of one row of input for a product with this matrix.
inline size_t input_bytes(const Matrix& matrix, Form form) { return matrix.groups() * form_bytes(form); }

enum class KvType : uint8_t { int8, f16, f32 };

constexpr int kKvBlock = 64;    // keys in one step of the online softmax
constexpr int kKvSplit = 1024;  // keys of one online softmax; a longer context is several, merged in order

// What the keys of one split make of a query, as floats: the largest score, 15 unused, the sum of e^(score - largest)
// in 16 lanes, and head_dim sums of values times those, rounded up to 16.
constexpr int split_state_size(int head_dim) { return 32 + round_up(head_dim, 16); }

constexpr int kScoreRun = 64;  // scores of which `largest` gives one

// How scores become weights.
struct Weighing {
  double scale = 1;   // of the exponents
  float highest = 0;  // weighs 1; finite
  float lowest = 0;   // lower scores weigh 0
};

// Powers 2^(score * factor + offset), where the highest score's is nearly 1: `weight.h` has the exact ones.
struct Powers {
  float factor, factor_rest;  // their sum is the factor
  float offset;               // a multiple of 2^-13, below 1024
  float lowest;               // lower scores count as this one, whose power is above 2^-126
};

// One block of 64 keys and values of one KV head; zeros where no token has been written. h is head_dim, H is h rounded
// up to 16.
//   int8: k [h rounded up to 4, / 4][64 keys][4] int8; v [16 keys / 4][H][4 keys] int8;
//         float k_scale[64], v_scale[64]; int32 k_offset[64] = -128 * sum of the key's int8 values
//   f16:  k [h][64 keys] fp16; v [64 keys][H] fp16           f32: the same in fp32

struct AttendArgs {
  const float* q;  // [rows][h] rows at distance q_stride: queries of all heads that share one KV head
  size_t q_stride;
  const int* position;  // [rows]: the last key that the row sees
  int rows;
  int window;         // keys that a row sees, its own included; 0: all
  const uint8_t* kv;  // blocks of this sequence, layer and KV head, one after the other
  int head_dim;
  float scale;  // of the scores
  float* out;   // [rows][h] rows at distance out_stride
  size_t out_stride;
  int split;  // -1: all keys. Otherwise only the keys from kKvSplit x split on: `out` then receives their states, of
              // rows that see some of them
};

// One function for each value of an enum.
template <class Enum, class Function>
struct Functions {
  Function* of[3];
  constexpr Function*& operator[](Enum value) { return of[static_cast<int>(value)]; }
  constexpr Function* operator[](Enum value) const { return of[static_cast<int>(value)]; }
};

struct Kernels {
  const char* isa;

  // Converts x [count] into groups of the form; count is padded with zeros to a multiple of 32.
  Functions<Form, void(const float* x, int count, void* out)> prepare;

  // y[r * y_stride + i] = dot(row 16 begin + i of the matrix, input r) for panels [begin, end).
  // Inputs are rows of prepared groups, x_stride bytes apart. Axis::out with `scaled`: begin and end are even.
  Functions<Form, void(const Matrix& w, int begin, int end, const void* x, size_t x_stride, int rows, float* y,
                       size_t y_stride)>
      matmul;

  // Computes silu(gate) * up from 32 gates and 32 ups of each row, and writes it as one prepared group; rows of `out`
  // are out_stride bytes apart.
  Functions<Form, void(const float* gate_up, size_t stride, int rows, void* out, size_t out_stride)> swiglu;

  // y = x / sqrt(mean(x^2) + eps) * weight; weight may be null (all ones).
  void (*rms_norm)(const float* x, const float* weight, int count, float eps, float* y);

  // logits[r * 16 panels + e] of `experts` (padded to 16 panels) for rows of x; weights are [inputs][16 panels].
  void (*router)(const float* weights, int panels, int inputs, const float* x, size_t x_stride, int rows,
                 float* logits);

  // Rotates adjacent pairs of x [count], head by head, by the angles whose (cos, sin) are given as [head_dim / 2][2].
  void (*rope)(float* x, int count, int head_dim, const float* cos_sin);

  // y += scale * x
  void (*add_scaled)(const float* x, float scale, int count, float* y);

  // Writes one token's key and value into slot `slot` of a block.
  Functions<KvType, void(const float* k, const float* v, int head_dim, int slot, uint8_t* block)> kv_append;

  // Causal attention with an online softmax over blocks of 64 keys, in order, begun anew at every kKvSplit-th key.
  Functions<KvType, void(const AttendArgs& args)> attend;

  // out [head_dim] = the attention of one row from `count` states of consecutive splits, one after the other.
  void (*merge_splits)(const float* states, int count, int head_dim, float* out);

  // The sum of e^(x - largest), exact within 2^-22 of it; NaN if there is one.
  double (*sum_exp)(const float* x, int count, float largest);

  // log(sum(exp(logits))), for scores.
  float (*log_sum_exp)(const float* logits, int count);

  // largest[i] = the largest of scores i * kScoreRun .. i * kScoreRun + kScoreRun - 1, of fewer at the end; NaN counts
  // as -infinity.
  void (*largest)(const float* scores, int count, float* largest);

  // weights[i] = e^((scores[i] - highest) * scale) in units of 1 / kOne (weight.h), rounded to nearest, and 0 for NaN
  // and below `lowest`; no score is above `highest`. Returns their sum. buckets[i] = the bucket of this weight, from 0
  // for a weight of 1 up to kBuckets - 1; `buckets` may be null.
  uint64_t (*weigh)(const float* scores, int count, const Weighing& weighing, uint64_t* weights, int16_t* buckets);

  // The sum of the powers of all scores that are at least `least`, within 2^-21.5 of it,
  // relative.
  void (*add_powers)(const float* scores, int count, const Powers& powers, const float* least, double* sum);

  // sums[j] = the same for each of least[3].
  void (*add_three_powers)(const float* scores, int count, const Powers& powers, const float* least, double* sums);

  // out[i] = scores[i] if bit i of `allowed` is 1, counted from the lowest of the first word; otherwise -infinity.
  void (*allow)(const float* scores, int count, const uint32_t* allowed, float* out);

  // found [count + 16] = each i with low <= scores[i] <= high, ascending, and what may be anything. Returns how many
  // there are.
  int (*between)(const float* scores, int count, float low, float high, int* found);

  // Multiplies int8 registers for some ten microseconds and returns how many multiply-adds that were, for
  // `integer_peak`; null in the scalar table.
  double (*multiply_adds)();
};

}  // namespace mobilemoe
