#include "files/pieces.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "files/engine_layout.h"
#include "files/panels.h"

namespace mobilemoe {
namespace {

constexpr size_t kPieceBytes = 1 << 20;  // about the size of a piece that a thread makes at a time

// The output whose weights are row r of a matrix.
using RowAt = std::function<PackedRow(int)>;

PackedRow row_of(const Packed& matrix, int row) { return {matrix.row_nibbles(row), matrix.row_scales(row)}; }

float from_bf16(const uint8_t* from) {
  uint16_t high;
  std::memcpy(&high, from, sizeof high);
  const uint32_t bits = static_cast<uint32_t>(high) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

class Cutter {
 public:
  explicit Cutter(const Checkpoint& checkpoint)
      : checkpoint_(checkpoint), config_(checkpoint.config), header_(make_header()), layout_(config_, header_.size()) {}

  Pieces cut() {
    pieces_.file_bytes = layout_.end();
    EngineHeader header{};
    std::memcpy(header.magic, kEngineMagic, sizeof header.magic);
    header.version = kEngineVersion;
    header.shared_pages = static_cast<uint32_t>(layout_.shared_end() / kEnginePage);
    header.json_bytes = header_.size() - sizeof header;
    header.file_bytes = layout_.end();
    header.fingerprint = checkpoint_.fingerprint;
    header.origin = checkpoint_.origin;
    std::memcpy(header_.data(), &header, sizeof header);
    add(0, header_.size(), [text = header_](uint8_t* out) { std::memcpy(out, text.data(), text.size()); });

    add_table("embedding", "model.embed_tokens");
    for (int layer = 0; layer < config_.num_hidden_layers; ++layer) {
      const std::string from = "model.layers." + std::to_string(layer);
      add_attention(layer_stem(layer), from);
      add_feed_forward(layer_stem(layer), from);
    }
    add_vector("norm", "model.norm.weight");
    if (!config_.tie_word_embeddings) add_table("head", "lm_head");
    return std::move(pieces_);
  }

 private:
  // Space for the header's numbers, then the JSON, padded with blanks to where the first section begins. The offsets in
  // the JSON depend on its own length, so it is made again until it fits.
  std::string make_header() const {
    std::string text;
    for (size_t start = sizeof(EngineHeader);;) {
      text = "{\"config\":" + checkpoint_.config_json + ",\"sections\":{";
      const EngineLayout layout(config_, start);
      for (const auto& [name, section] : layout.sections()) {
        text += (text.back() == '{' ? "\"" : ",\"") + name + "\":[" + std::to_string(section.offset) + "," +
                std::to_string(section.bytes) + "]";
      }
      text += "}}";
      const size_t needed = align_section(sizeof(EngineHeader) + text.size());
      if (needed <= start) {
        text.resize(start - sizeof(EngineHeader), ' ');
        return std::string(sizeof(EngineHeader), '\0') + text;
      }
      start = needed;
    }
  }

  const uint8_t* data(const std::string& name) const { return checkpoint_.tensors.at(name).data; }
  Packed matrix(const std::string& stem, int columns) const {
    return {data(stem + ".qweight"), data(stem + ".weight_scale"), columns};
  }

  void add(size_t offset, size_t bytes, std::function<void(uint8_t*)> fill) {
    pieces_.all.push_back({offset, bytes, std::move(fill)});
  }

  // Adds `units` parts of `bytes` each, one after the other; fill(unit, out) writes one of them.
  template <class Fill>
  void add_units(size_t offset, int units, size_t bytes, const Fill& fill) {
    const int step = static_cast<int>(std::max<size_t>(1, kPieceBytes / bytes));
    for (int begin = 0; begin < units; begin += step) {
      const int end = std::min(units, begin + step);
      const auto count = [bytes](int some) { return some * bytes; };
      add(offset + count(begin), count(end - begin), [fill, bytes, begin, end](uint8_t* out) {
        for (int unit = begin; unit < end; ++unit, out += bytes) fill(unit, out);
      });
    }
  }

  void add_rows(size_t offset, int outputs, int inputs, const RowAt& row_at) {
    const int groups = inputs / kGroup;
    add_units(offset, outputs / kPanel, panel_bytes(groups), [row_at, groups](int panel, uint8_t* out) {
      PackedRow rows[kPanel];
      for (int o = 0; o < kPanel; ++o) rows[o] = row_at(kPanel * panel + o);
      fill_panel(rows, groups, out);
    });
  }

  void add_table(const std::string& section, const std::string& stem) {
    const int rows = config_.vocab_size;
    const Packed table = matrix(stem, config_.hidden_size);
    add_rows(layout_.offset(section), round_up(rows, kPanel), config_.hidden_size,
             [table, rows](int row) { return row < rows ? row_of(table, row) : PackedRow{}; });
  }

  void add_vector(const std::string& section, const std::string& name) {
    const Tensor& tensor = checkpoint_.tensors.at(name);
    const size_t count = tensor.bytes / 2;
    add(layout_.offset(section), count * sizeof(float), [from = tensor.data, count](uint8_t* out) {
      for (size_t i = 0; i < count; ++i) {
        const float value = from_bf16(from + 2 * i);
        std::memcpy(out + sizeof value * i, &value, sizeof value);
      }
    });
  }

  void add_attention(const std::string& to, const std::string& from) {
    const int hidden = config_.hidden_size, q_rows = config_.q_width(), kv_rows = config_.kv_width();
    const int k_begin = round_up(q_rows, kPanel), v_begin = k_begin + round_up(kv_rows, kPanel);
    const Packed q = matrix(from + ".self_attn.q_proj", hidden), k = matrix(from + ".self_attn.k_proj", hidden);
    const Packed v = matrix(from + ".self_attn.v_proj", hidden), o = matrix(from + ".self_attn.o_proj", q_rows);
    add_vector(to + "input_norm", from + ".input_layernorm.weight");
    add_rows(layout_.offset(to + "qkv"), qkv_rows(config_), hidden, [=](int row) {
      const Packed& part = row < k_begin ? q : row < v_begin ? k : v;
      const int at = row < k_begin ? row : row < v_begin ? row - k_begin : row - v_begin;
      return at < (row < k_begin ? q_rows : kv_rows) ? row_of(part, at) : PackedRow{};
    });
    if (config_.qk_norm == QkNorm::head_weight || config_.qk_norm == QkNorm::projection_weight) {
      add_vector(to + "q_norm", from + ".self_attn.q_norm.weight");
      add_vector(to + "k_norm", from + ".self_attn.k_norm.weight");
    }
    add_rows(layout_.offset(to + "o"), hidden, q_rows, [o](int row) { return row_of(o, row); });
    add_vector(to + "post_attention_norm", from + ".post_attention_layernorm.weight");
  }

  // Axis::in; `at` is where the FFN begins.
  void add_ffn(size_t at, int width, const Packed& gate, const Packed& up, const Packed& down) {
    const int hidden = config_.hidden_size;
    add_rows(at, 2 * width, hidden, [gate, up](int row) {
      const int block = row / (2 * kGroup), within = row % (2 * kGroup);
      return row_of(within < kGroup ? gate : up, block * kGroup + within % kGroup);
    });
    add_rows(at + align_section(Matrix::bytes(2 * width, hidden)), hidden, width,
             [down](int row) { return row_of(down, row); });
  }

  void add_linear_ffn(const std::string& section, const std::string& stem, int width) {
    add_ffn(layout_.offset(section), width, matrix(stem + ".gate_proj", config_.hidden_size),
            matrix(stem + ".up_proj", config_.hidden_size), matrix(stem + ".down_proj", width));
  }

  void add_feed_forward(const std::string& to, const std::string& from) {
    const std::string ffn = from + ".feed_forward";
    if (!config_.is_moe) {
      add_linear_ffn(to + "shared", ffn, config_.intermediate_size);
      return;
    }
    add_router(to + "router", ffn + ".router.weight");
    if (config_.has_expert_bias()) add_vector(to + "expert_bias", ffn + ".expert_bias");
    add_experts(layout_.offset(to + "experts"), ffn + ".experts.");
    if (config_.intermediate_size_mlp > 0) {
      add_linear_ffn(to + "shared", ffn + ".shared_expert", config_.intermediate_size_mlp);
    }
  }

  // [experts][hidden] -> [hidden][experts padded to 16].
  void add_router(const std::string& section, const std::string& name) {
    const size_t experts = config_.num_local_experts;
    const size_t hidden = config_.hidden_size;
    const size_t row_bytes = round_up(config_.num_local_experts, kPanel) * sizeof(float);
    add_units(layout_.offset(section), config_.hidden_size, row_bytes,
              [from = data(name), experts, hidden, row_bytes](int input, uint8_t* out) {
                std::memset(out, 0, row_bytes);
                for (size_t expert = 0; expert < experts; ++expert) {
                  std::memcpy(out + sizeof(float) * expert, from + sizeof(float) * (expert * hidden + input),
                              sizeof(float));
                }
              });
  }

  void add_experts(size_t at, const std::string& stem) {
    const int hidden = config_.hidden_size, width = config_.intermediate_size;
    const bool is_out = config_.expert_axis == Axis::out;
    const auto packed = [&](const char* part, int inputs, int outputs) {
      return Packed{data(stem + part + "_qweight"), data(stem + part + "_scale"), is_out ? outputs : inputs};
    };
    const Packed gate_up = packed("gate_up", hidden, 2 * width), down = packed("down", width, hidden);
    const size_t gate_up_rows = is_out ? hidden : 2 * width;
    const size_t down_rows = is_out ? width : hidden;
    for (int expert = 0; expert < config_.num_local_experts; ++expert) {
      const Packed first = gate_up.from_row(expert * gate_up_rows), second = down.from_row(expert * down_rows);
      if (is_out) {
        const int gate_groups = width / kGroup;
        // Pairs of panels are alternately 32 outputs of gate and 32 of up.
        add_pairs(at, 2 * width, hidden, first,
                  [gate_groups](int pair) { return pair % 2 == 0 ? pair / 2 : gate_groups + pair / 2; });
        add_pairs(at + align_section(Matrix::bytes(2 * width, hidden)), hidden, width, second,
                  [](int pair) { return pair; });
      } else {
        add_ffn(at, width, first, first.from_row(width), second);
      }
      at += expert_bytes(config_);
    }
  }

  template <class GroupAt>
  void add_pairs(size_t offset, int outputs, int inputs, const Packed& rows, const GroupAt& group_at) {
    const int groups = inputs / kGroup;
    add_units(offset, outputs / kGroup, 2 * panel_bytes(groups),
              [rows, groups, group_at](int pair, uint8_t* out) { fill_pair(rows, group_at(pair), groups, out); });
  }

  const Checkpoint& checkpoint_;
  const Config& config_;
  std::string header_;
  EngineLayout layout_;
  Pieces pieces_;
};

}  // namespace

Pieces cut_engine_file(const Checkpoint& checkpoint) { return Cutter(checkpoint).cut(); }

}  // namespace mobilemoe
