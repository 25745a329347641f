// The Python module mobilemoe.engine._native. It exposes the engine's classes only: whatever Python can do as well is
// written in Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unordered_map.h>
#include <nanobind/stl/vector.h>

#include <cstring>
#include <optional>

#include "compute/machine_speed.h"
#include "compute/sampler.h"
#include "files/checkpoint.h"
#include "files/draft_file.h"
#include "files/engine_file.h"
#include "files/engine_layout.h"
#include "files/session_file.h"
#include "kernels/dispatch.h"
#include "names.h"
#include "repacking.h"
#include "requests.h"
#include "threads/cores.h"

namespace mobilemoe::python {
namespace {

using namespace nb::literals;

using Logits = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

struct PySampler {
  Sampler sampler;
  int vocab_size;
};

struct PySpeculation {
  EnginePointer owner;
  std::unique_ptr<Speculation> speculation;
};

PyObject* native_error = nullptr;  // the type of our exceptions, which the module keeps alive

nb::object as_exception(const Error& error) {
  nb::object instance = nb::handle(native_error)(error.what());
  instance.attr("code") = name_of(error.code());
  return instance;
}

// An array that owns its memory; what it held before `fill` is not defined.
template <class T>
struct Owned {
  explicit Owned(size_t count) : memory(new T[count]) {}
  template <size_t N>
  nb::ndarray<nb::numpy, T, nb::c_contig> give(const size_t (&shape)[N]) {
    T* data = memory.release();
    const nb::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
    return {data, N, shape, owner};
  }
  std::unique_ptr<T[]> memory;
};

auto forward(const EnginePointer& self, const nb::sequence& given, const nb::object& forced, const nb::object& chosen) {
  const Requests requests(self, given, forced, chosen);
  const auto vocab_size = static_cast<size_t>(self->engine.model().config.vocab_size);
  Owned<float> logits(requests.outputs() * vocab_size);
  self->locked([&] { self->engine.forward(requests.data(), requests.count(), logits.memory.get()); });
  return logits.give({requests.outputs(), vocab_size});
}

auto score(const EnginePointer& self, const nb::sequence& given, nb::handle target_ids) {
  const Requests requests(self, given, nb::none(), nb::none());
  const std::vector<int> targets = ids_of(target_ids);
  const size_t count = requests.outputs();
  require(targets.size() == count,
          "there are " + std::to_string(targets.size()) + " targets for " + std::to_string(count) + " outputs");
  std::vector<Score> scores(count);
  self->locked([&] { self->engine.score(requests.data(), requests.count(), targets.data(), scores.data()); });
  Owned<float> logprobs(count);
  Owned<bool> is_greedy(count);
  for (size_t i = 0; i < count; ++i) {
    logprobs.memory[i] = scores[i].logprob;
    is_greedy.memory[i] = scores[i].is_greedy;
  }
  return std::make_pair(logprobs.give({count}), is_greedy.give({count}));
}

// How many of a text's drafts a pass is to hold, for texts that are a speculation, a sequence and its next token.
nb::list draft(const EnginePointer& self, const nb::list& given, int rows) {
  std::vector<Drafting> texts;
  for (const nb::handle each : given) {
    nb::tuple item;
    PySpeculation* speculation = nullptr;
    PySequence* sequence = nullptr;
    int token = 0;
    require(nb::try_cast(each, item, false) && item.size() == 3 && nb::try_cast(item[0], speculation, false) &&
                speculation != nullptr && nb::try_cast(item[1], sequence, false) && sequence != nullptr &&
                nb::try_cast(item[2], token),
            "a text is a tuple of a speculation, a sequence and a token id");
    require(speculation->owner == self && sequence->owner == self, "a text belongs to another engine");
    texts.push_back({speculation->speculation.get(), sequence->sequence.get(), token});
  }
  self->locked([&] { self->engine.draft(texts.data(), static_cast<int>(texts.size()), rows); });
  nb::list drafts;
  for (const Drafting& text : texts) {
    const auto tokens = text.speculation->proposal().tokens.begin();
    drafts.append(std::vector<int>(tokens, tokens + text.drafts));
  }
  return drafts;
}

// The next tokens of several texts: for each a sampler, its logits, whether to give the log-probability, how many
// likeliest tokens, what is allowed or None, and its speculation or None. An error of one is the last of its choices.
nb::list choose(const EnginePointer& self, const nb::list& given) {
  std::vector<Choosing> texts(given.size());
  std::vector<Logits> logits(given.size());
  std::vector<Bits> allowed(given.size());
  const auto size = static_cast<size_t>(self->engine.model().config.vocab_size);
  const std::string vocabulary = " for a vocabulary of " + std::to_string(size);
  for (size_t i = 0; i < texts.size(); ++i) {
    nb::tuple item;
    PySampler* sampler = nullptr;
    PySpeculation* speculation = nullptr;
    require(nb::try_cast(given[i], item, false) && item.size() == 6 && nb::try_cast(item[0], sampler, false) &&
                sampler != nullptr && nb::try_cast(item[1], logits[i], false) &&
                nb::try_cast(item[2], texts[i].with_logprob, false) && nb::try_cast(item[3], texts[i].top, false) &&
                (item[4].is_none() || nb::try_cast(item[4], allowed[i], false)) &&
                (item[5].is_none() || (nb::try_cast(item[5], speculation, false) && speculation != nullptr)),
            "a text is a tuple of a sampler, its logits, with_logprob, top, the allowed tokens or None and its "
            "speculation or None");
    require(logits[i].shape(1) == size && static_cast<size_t>(sampler->vocab_size) == size,
            "there are " + std::to_string(logits[i].shape(1)) + " logits" + vocabulary);
    require(item[4].is_none() || allowed[i].size() == (size + 31) / 32,
            "allowed has " + std::to_string(allowed[i].size()) + " words of 32 bits" + vocabulary);
    texts[i].drafts = static_cast<int>(logits[i].shape(0)) - 1;
    const int most = speculation == nullptr ? 0 : speculation->speculation->proposal().count;
    require(texts[i].drafts >= 0 && texts[i].drafts <= most, "a text has logits behind tokens that were not drafted");
    for (size_t j = 0; j < i; ++j) require(texts[j].sampler != &sampler->sampler, "two texts have the same sampler");
    texts[i].sampler = &sampler->sampler;
    texts[i].logits = logits[i].data();
    texts[i].allowed = item[4].is_none() ? nullptr : allowed[i].data();
    texts[i].speculation = speculation == nullptr ? nullptr : speculation->speculation.get();
  }
  self->locked([&] { self->engine.choose(texts.data(), static_cast<int>(texts.size())); });
  nb::list chosen;
  for (Choosing& text : texts) {
    nb::list choices;
    for (Choice& choice : text.choices) {
      choices.append(nb::make_tuple(choice.token, choice.logprob, std::move(choice.top)));
    }
    try {
      if (text.error) std::rethrow_exception(text.error);
    } catch (const Error& error) {
      choices.append(as_exception(error));
    }
    chosen.append(std::move(choices));
  }
  return chosen;
}

nb::bytes bytes_of(const Fingerprint& fingerprint) { return nb::bytes(fingerprint.data(), fingerprint.size()); }

std::vector<std::string> list_kernels() {
  std::vector<std::string> names;
  for (const char* const* name = available_kernels(); *name; ++name) names.emplace_back(*name);
  return names;
}

std::pair<double, double> machine_speed(int threads) {
  constexpr size_t kBytes = size_t{1} << 30;  // larger than any cache
  const nb::gil_scoped_release release;
  ThreadPool pool(threads);
  const double bytes = read_bandwidth(pool, kBytes, 1.0);
  return {bytes, integer_peak(pool, choose_kernels(), 0.5)};
}

void bind_error(nb::module_& m) {
  PyObject* type = native_error = PyErr_NewException("mobilemoe.engine._native.NativeError", PyExc_Exception, nullptr);
  m.attr("NativeError") = nb::steal(type);
  nb::register_exception_translator(
      [](const std::exception_ptr& thrown, void* payload) {
        try {
          std::rethrow_exception(thrown);
        } catch (const Error& error) {
          PyErr_SetObject(static_cast<PyObject*>(payload), as_exception(error).ptr());
        }
      },
      type);
}

void bind_engine(nb::module_& m) {
  const auto config = [](const EnginePointer& self) -> const Config& { return self->engine.model().config; };
  nb::class_<PyEngine>(m, "Engine")
      .def_static(
          "open",
          [](const std::string& path, int threads, const std::string& kv, bool fp32, size_t max_memory,
             int experts_per_token, double cache_prior, int always_top, int cached_experts, double capacity,
             const std::string& skip) {
            const RoutingOptions routing{experts_per_token, cache_prior, always_top,
                                         cached_experts,    capacity,    skip_of(skip)};
            const EngineOptions options{threads, kv_of(kv), fp32, max_memory, routing};
            const nb::gil_scoped_release release;
            return std::make_shared<PyEngine>(path, options);
          },
          "path"_a, "threads"_a = 0, "kv"_a = "int8", "fp32"_a = false, "max_memory"_a = 0, nb::kw_only(),
          "experts_per_token"_a = 0, "cache_prior"_a = 0.0, "always_top"_a = -1, "cached_experts"_a = 0,
          "capacity"_a = 0.0, "skip"_a = "pair")
      .def_prop_ro("vocab_size", [config](const EnginePointer& self) { return config(self).vocab_size; })
      .def_prop_ro("layers", [config](const EnginePointer& self) { return config(self).num_hidden_layers; })
      .def_prop_ro("context", [config](const EnginePointer& self) { return config(self).max_position_embeddings; })
      .def_prop_ro("experts", [config](const EnginePointer& self) { return config(self).num_local_experts; })
      .def_prop_ro("active_experts", [config](const EnginePointer& self) { return config(self).num_experts_per_tok; })
      .def_prop_ro("file_bytes", [](const EnginePointer& self) { return self->engine.model().file_bytes; })
      .def_prop_ro("config_json", [](const EnginePointer& self) { return self->engine.model().config_json; })
      .def_prop_ro("fingerprint", [](const EnginePointer& self) { return bytes_of(self->engine.model().fingerprint); })
      .def_prop_ro("origin", [](const EnginePointer& self) { return bytes_of(self->engine.model().origin); })
      .def_prop_ro("threads", [](const EnginePointer& self) { return self->engine.threads(); })
      .def_prop_ro("isa", [](const EnginePointer& self) { return self->engine.isa(); })
      .def_prop_ro("room", [](const EnginePointer& self) { return self->engine.room(); })
      .def_prop_ro("expert_use",
                   [](const EnginePointer& self) {
                     const ExpertUse use = self->engine.expert_use();
                     nb::dict found;
                     found["hits"] = use.hits;
                     found["ahead"] = use.ahead;
                     found["misses"] = use.misses;
                     found["bytes_read"] = use.bytes_read;
                     found["places"] = use.places;
                     found["experts"] = use.experts;
                     found["expert_bytes"] = use.expert_bytes;
                     return found;
                   })
      .def_prop_ro("routing_use",
                   [](const EnginePointer& self) {
                     const RoutingUse use = self->locked([&] { return self->engine.routing_use(); });
                     nb::dict found;
                     found["hits"] = use.hits;
                     found["misses"] = use.misses;
                     found["pairs"] = use.pairs;
                     found["skipped"] = use.skipped;
                     return found;
                   })
      .def_prop_ro("kv", [](const EnginePointer& self) { return name_of(self->engine.options().kv); })
      .def_prop_ro("fp32", [](const EnginePointer& self) { return self->engine.options().fp32; })
      .def(
          "new_sequence",
          [](const EnginePointer& self, int capacity) { return PySequence{self, self->engine.new_sequence(capacity)}; },
          "capacity"_a = 0)
      .def(
          "kv_bytes", [](const EnginePointer& self, int tokens) { return self->engine.kv_bytes(tokens); }, "tokens"_a)
      .def(
          "session_tokens",
          [](const EnginePointer& self, const std::string& path) {
            return session_tokens(path, self->engine.options().kv, self->engine.model().fingerprint);
          },
          "path"_a)
      .def("forward", &forward, "requests"_a, "forced_experts"_a = nb::none(), "chosen_experts"_a = nb::none())
      .def(
          "load_draft",
          [](const EnginePointer& self, const std::string& path) {
            DraftWeights weights = read_draft_file(path, self->engine.model().config);
            self->locked([&] { self->engine.use_head(std::move(weights)); });
          },
          "path"_a)
      .def(
          "new_speculation",
          [](const EnginePointer& self, const std::string& how) {
            const Speculate wanted = speculate_of(how);
            require(wanted != Speculate::head || self->engine.has_head(), "the model has no draft head");
            return PySpeculation{self, self->engine.new_speculation(wanted)};
          },
          "how"_a)
      .def_prop_ro("drafts",
                   [](const EnginePointer& self) {
                     const DraftCounts& counts = self->engine.drafts();
                     return nb::make_tuple(counts.passes.load(), counts.proposed.load(), counts.accepted.load());
                   })
      .def("draft", &draft, "texts"_a, "rows"_a)
      .def("choose", &choose, "texts"_a)
      .def("score", &score, "requests"_a, "targets"_a);
}

void bind_sequence(nb::module_& m) {
  nb::class_<PySequence>(m, "Sequence")
      .def_prop_ro("length",
                   [](PySequence& s) { return s.owner->locked_briefly([&] { return s.sequence->length(); }); })
      .def_prop_ro("capacity", [](PySequence& s) { return s.sequence->capacity(); })
      .def_prop_ro("tokens",
                   [](PySequence& s) { return s.owner->locked_briefly([&] { return s.sequence->tokens(); }); })
      .def(
          "truncate", [](PySequence& s, int length) { s.owner->locked_briefly([&] { s.sequence->truncate(length); }); },
          "length"_a)
      .def(
          "copy_from",
          [](PySequence& s, const PySequence& other, int length) {
            require(s.owner == other.owner, "the other sequence belongs to another engine");
            s.owner->locked([&] {
              s.owner->engine.make_room(s.owner->engine.kv_bytes(length));
              s.sequence->copy_from(*other.sequence, length);
            });
          },
          "other"_a, "length"_a)
      .def(
          "save",
          [](PySequence& s, const std::string& path) {
            s.owner->locked([&] { save_sequence(*s.sequence, path, s.owner->engine.model().fingerprint); });
          },
          "path"_a)
      .def(
          "load",
          [](PySequence& s, const std::string& path) {
            s.owner->locked([&] { load_sequence(*s.sequence, path, s.owner->engine.model().fingerprint); });
          },
          "path"_a);
}

void bind_sampler(nb::module_& m) {
  nb::class_<PySampler>(m, "Sampler")
      .def(
          "__init__",
          [](PySampler* self, int vocab_size, double temperature, int top_k, double top_p, double min_p,
             double repetition_penalty, double presence_penalty, double frequency_penalty, uint64_t seed,
             const std::unordered_map<int, float>& logit_bias) {
            Sampling sampling{temperature,       top_k, top_p, min_p, repetition_penalty, presence_penalty,
                              frequency_penalty, seed,  {}};
            sampling.logit_bias.assign(logit_bias.begin(), logit_bias.end());
            new (self) PySampler{Sampler(std::move(sampling), vocab_size), vocab_size};
          },
          "vocab_size"_a, nb::kw_only(), "temperature"_a = 0.0, "top_k"_a = 0, "top_p"_a = 1.0, "min_p"_a = 0.0,
          "repetition_penalty"_a = 1.0, "presence_penalty"_a = 0.0, "frequency_penalty"_a = 0.0, "seed"_a = 0,
          "logit_bias"_a = std::unordered_map<int, float>())
      .def(
          "see",
          [](PySampler& self, nb::handle token_ids) {
            const std::vector<int> ids = ids_of(token_ids);
            self.sampler.see(ids.data(), static_cast<int>(ids.size()));
          },
          "tokens"_a);
}

}  // namespace
}  // namespace mobilemoe::python

NB_MODULE(_native, m) {
  namespace nb = nanobind;
  using namespace nb::literals;
  using namespace mobilemoe::python;
  nb::set_leak_warnings(false);  // objects that are still alive when the interpreter exits are no leak
  bind_error(m);
  bind_engine(m);
  bind_sequence(m);
  bind_sampler(m);
  [[maybe_unused]] const nb::class_<PySpeculation> speculation(m, "Speculation");
  m.def("available_kernels", &list_kernels);
  m.def("allowed_cores", []() { return mobilemoe::allowed_cores(); });
  m.def("default_threads", []() { return mobilemoe::default_threads(); });
  m.def("machine_speed", &machine_speed, "threads"_a);
  m.def("repack", &repack, "folder"_a, "path"_a, "progress"_a = nb::none(), "origin"_a = nb::none());
  m.def("verify", &mobilemoe::verify_engine_file, "path"_a, nb::call_guard<nb::gil_scoped_release>());
  m.def(
      "checkpoint_fingerprint",
      [](const std::string& folder) {
        mobilemoe::Fingerprint found;
        {
          const nb::gil_scoped_release release;
          found = mobilemoe::checkpoint_fingerprint(folder);
        }
        return bytes_of(found);
      },
      "folder"_a);
  m.attr("INTERFACE_VERSION") = 8;  // of this module; src/mobilemoe/engine/native.py names the one it needs
  m.attr("ENGINE_VERSION") = mobilemoe::kEngineVersion;
}
