#include "files/config_rope.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "files/config_fields.h"

namespace mobilemoe {
namespace {

using config_fields::fail;
using config_fields::Fields;
using config_fields::show;

// Between blanks: of scalings that are not computed here, whatever kind they claim to be; and of llama3.
constexpr char kForeign[] =
    " alpha attention_factor attn_factor beta_fast beta_slow extrapolation_factor finetuned long_factor long_mscale"
    " mscale mscale_all_dim mrope_interleaved mrope_section scale_base short_factor short_mscale truncate ";
constexpr char kOfLlama3[] = " factor low_freq_factor high_freq_factor ";

struct Entry {
  std::string where;
  const Json* object;
};

bool ends_with(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

// The entries of `key`: one for each kind of layer that the model has, or one for all of them.
std::vector<Entry> entries_of(const Json& value, const std::string& key, const std::vector<std::string>& kinds) {
  if (value.members() == nullptr) fail(key + " is " + show(value) + ", not an object");
  std::string nested, other;
  for (const JsonMember& member : *value.members()) {
    (member.value.members() != nullptr || ends_with(member.name, "_attention") ? nested : other) = member.name;
  }
  if (nested.empty()) return {{key, &value}};
  if (!other.empty()) fail(key + " holds " + other + " beside " + nested + ": give it once for each kind of layer");
  std::vector<Entry> out;
  for (const std::string& kind : kinds) {
    const Json* entry = value.find(kind);
    if (entry == nullptr || entry->members() == nullptr) {
      fail(key + "." + kind + " is no object, but every layer must have RoPE");
    }
    out.push_back({key + "." + kind, entry});
  }
  return out;
}

// The llama3 scaling of an entry, or nothing if it has none. `is_new`: an entry may leave out its type, and then has
// none.
std::optional<RopeScaling> read_scaling(const Entry& entry, bool is_new) {
  const Fields fields(*entry.object, entry.where + ".");
  const Json *type = entry.object->find("rope_type"), *older = entry.object->find("type");
  if (type != nullptr && older != nullptr && type->source != older->source) {
    fail(entry.where + ".rope_type is " + show(*type) + ", but " + entry.where + ".type is " + show(*older));
  }
  const char* key = type != nullptr || older == nullptr ? "rope_type" : "type";
  if (!is_new) fields.need(key);
  const size_t kind = fields.word(key, {"llama3", "default"}, 1);
  const Json* part = fields.get("partial_rotary_factor");
  if (part != nullptr && !Fields::is_number(*part, 1)) {
    fields.refuse("partial_rotary_factor", ", but RoPE turns the whole head here");
  }
  const std::string foreign = kind == 0 ? kForeign : std::string(kForeign) + kOfLlama3;
  for (const JsonMember& member : *entry.object->members()) {
    if (foreign.find(" " + member.name + " ") != std::string::npos && !member.value.is_null()) {
      fail(entry.where + "." + member.name + " is " + show(member.value) + ", which is not supported with " +
           (kind == 0 ? "llama3" : "default"));
    }
  }
  if (kind == 1) return std::nullopt;
  RopeScaling scaling;
  const auto read = [&fields](const char* name, double& out) {
    fields.need(name);
    fields.positive(name, out);
  };
  read("factor", scaling.factor);
  read("original_max_position_embeddings", scaling.original_max_position_embeddings);
  read("low_freq_factor", scaling.low_freq_factor);
  read("high_freq_factor", scaling.high_freq_factor);
  if (scaling.low_freq_factor > scaling.high_freq_factor) {
    fields.refuse("low_freq_factor", ", but must not be larger than high_freq_factor");
  }
  return scaling;
}

bool same(const std::optional<RopeScaling>& a, const std::optional<RopeScaling>& b) {
  if (!a || !b) return !a && !b;
  return a->factor == b->factor && a->original_max_position_embeddings == b->original_max_position_embeddings &&
         a->low_freq_factor == b->low_freq_factor && a->high_freq_factor == b->high_freq_factor;
}

std::vector<std::string> kinds_of(const Config& config) {
  bool full = false, sliding = false;
  for (const int window : config.window) (window == 0 ? full : sliding) = true;
  std::vector<std::string> kinds;
  if (full) kinds.emplace_back("full_attention");
  if (sliding) kinds.emplace_back("sliding_attention");
  return kinds;
}

}  // namespace

void read_rope(const Json& object, Config& config) {
  const Fields fields(object, "");
  std::string theta_place = "rope_theta", scaling_place;
  bool has_theta = fields.get("rope_theta") != nullptr;
  if (has_theta) fields.positive("rope_theta", config.rope_theta);
  std::optional<RopeScaling> scaling;
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    const bool is_new = std::string_view(key) == "rope_parameters";
    const Json* value = fields.get(key);
    if (value == nullptr || (is_new && value->members() != nullptr && value->members()->empty())) continue;
    for (const Entry& entry : entries_of(*value, key, kinds_of(config))) {
      const std::optional<RopeScaling> found = read_scaling(entry, is_new);
      if (!scaling_place.empty() && !same(scaling, found)) {
        fail(entry.where + " and " + scaling_place + " do not say the same: only one scaling is supported");
      }
      scaling = found;
      scaling_place = entry.where;
      const std::string place = entry.where + ".rope_theta";
      if (entry.object->find("rope_theta") == nullptr) {
        if (is_new && !has_theta) fail(place + " is missing");
        continue;
      }
      double theta = 0;
      Fields(*entry.object, entry.where + ".").positive("rope_theta", theta);
      if (has_theta && theta != config.rope_theta) {
        fail(place + " is not what " + theta_place + " is: only one is supported");
      }
      if (!has_theta) theta_place = place;
      has_theta = true;
      config.rope_theta = theta;
    }
  }
  if (!has_theta) fields.positive("rope_theta", config.rope_theta);  // null is no number
  config.has_rope_scaling = scaling.has_value();
  if (scaling) config.rope_scaling = *scaling;
}

}  // namespace mobilemoe
