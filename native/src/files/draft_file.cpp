#include "files/draft_file.h"

#include <cstring>

#include "error.h"
#include "files/mapped_file.h"
#include "files/panels.h"
#include "files/safetensors.h"

namespace mobilemoe {
namespace {

constexpr int kMost = 1 << 20;  // of the width and of the shortlist, as in mobilemoe.checkpoint.draft

class Reader {
 public:
  Reader(const std::string& path, const Config& config)
      : path_(path), config_(config), file_(path), tensors_(read_safetensors(file_.data(), file_.size(), path)) {}

  DraftWeights read() {
    const int hidden = config_.hidden_size;
    if (hidden % kGroup != 0) fail("the model's hidden_size is no multiple of 32");
    const int width = length("gate_proj.weight_scale"), count = length("shortlist");
    DraftWeights weights;
    weights.layers = layers();
    const int first_inputs = (2 + static_cast<int>(weights.layers.size())) * hidden;
    const Packed first_proj = packed("first_proj", hidden, first_inputs);
    const Packed in_proj = packed("in_proj", hidden, 2 * hidden), gate = packed("gate_proj", width, hidden);
    const Packed up = packed("up_proj", width, hidden), down = packed("down_proj", hidden, width);
    const Packed head = packed("head", count, hidden);

    const size_t bytes = Matrix::bytes(hidden, first_inputs) + Matrix::bytes(hidden, 2 * hidden) +
                         Matrix::bytes(2 * width, hidden) + Matrix::bytes(hidden, width) + Matrix::bytes(count, hidden);
    memory_ = std::make_shared<std::vector<uint8_t>>(bytes + kAlignment);
    const auto start = reinterpret_cast<uintptr_t>(memory_->data());
    next_ = memory_->data() + (kAlignment - start % kAlignment) % kAlignment;

    weights.first_proj = matrix(hidden, first_inputs, [&](int row) { return row_of(first_proj, row); });
    weights.in_proj = matrix(hidden, 2 * hidden, [&](int row) { return row_of(in_proj, row); });
    weights.ffn.width = width;
    weights.ffn.gate_up = matrix(2 * width, hidden, [&](int row) {  // 32 rows of gate, then 32 of up, in turn
      return row_of(row / kGroup % 2 == 0 ? gate : up, row / (2 * kGroup) * kGroup + row % kGroup);
    });
    weights.ffn.down = matrix(hidden, width, [&](int row) { return row_of(down, row); });
    weights.head = matrix(count, hidden, [&](int row) { return row_of(head, row); });
    weights.shortlist = ints("shortlist", count, config_.vocab_size);
    weights.storage = memory_;
    return weights;
  }

 private:
  static constexpr size_t kAlignment = 64;

  [[noreturn]] void fail(const std::string& reason) const { throw Error(ErrorCode::file, path_ + ": " + reason); }

  const Tensor& tensor(const std::string& name) const {
    const auto found = tensors_.find(name);
    if (found == tensors_.end()) fail("it is no draft head, since it holds no tensor " + name);
    return found->second;
  }

  int length(const std::string& name) const {
    const Tensor& found = tensor(name);
    if (found.shape.empty() || found.shape[0] < 1 || found.shape[0] > kMost || found.shape[0] % kGroup != 0) {
      fail("the length of " + name + " is no multiple of 32 up to " + std::to_string(kMost));
    }
    return static_cast<int>(found.shape[0]);
  }

  const Tensor& tensor(const std::string& name, const char* dtype, const std::vector<int64_t>& shape) const {
    const Tensor& found = tensor(name);
    if (found.dtype != dtype || found.shape != shape) fail("tensor " + name + " does not fit the model");
    return found;
  }

  Packed packed(const std::string& name, int rows, int columns) const {
    const Tensor& nibbles = tensor(name + ".qweight", "U8", {rows, columns / 2});
    const Tensor& scales = tensor(name + ".weight_scale", "F16", {rows, columns / kGroup});
    for (size_t at = 0; at < scales.bytes; at += 2) {
      uint16_t bits;
      std::memcpy(&bits, scales.data + at, sizeof bits);
      if ((bits & 0x7c00) == 0x7c00) fail("tensor " + name + ".weight_scale holds NaN or infinity");
    }
    return {nibbles.data, scales.data, columns};
  }

  std::vector<int> ints(const std::string& name, int64_t count, int end) const {
    const Tensor& found = tensor(name, "I32", {count});
    std::vector<int> ints(static_cast<size_t>(count));
    if (count > 0) std::memcpy(ints.data(), found.data, ints.size() * sizeof(int32_t));
    for (size_t i = 0; i < ints.size(); ++i) {
      if (ints[i] < 0 || ints[i] >= end || (i > 0 && ints[i] <= ints[i - 1])) {
        fail(name + " does not hold ascending numbers below " + std::to_string(end));
      }
    }
    return ints;
  }

  std::vector<int> layers() const {
    const Tensor& found = tensor("layers");
    const int64_t count = found.shape.size() == 1 ? found.shape[0] : -1;
    if (count < 0 || count > config_.num_hidden_layers) fail("layers is no list of the model's layers");
    return ints("layers", count, config_.num_hidden_layers);
  }

  static PackedRow row_of(const Packed& rows, int row) { return {rows.row_nibbles(row), rows.row_scales(row)}; }

  // A matrix of `outputs`, a multiple of 16, whose rows `row_at` gives.
  template <class RowAt>
  Matrix matrix(int outputs, int inputs, const RowAt& row_at) {
    Matrix made{next_, outputs, inputs, Axis::in};
    for (int panel = 0; panel < made.panels(); ++panel) {
      PackedRow rows[kPanel];
      for (int o = 0; o < kPanel; ++o) rows[o] = row_at(panel * kPanel + o);
      fill_panel(rows, made.groups(), next_);
      next_ += panel_bytes(made.groups());
    }
    return made;
  }

  const std::string& path_;
  const Config& config_;
  MappedFile file_;
  Tensors tensors_;
  std::shared_ptr<std::vector<uint8_t>> memory_;
  uint8_t* next_ = nullptr;
};

}  // namespace

DraftWeights read_draft_file(const std::string& path, const Config& config) { return Reader(path, config).read(); }

}  // namespace mobilemoe
