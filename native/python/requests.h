// What Python hands to the engine: sequences, token ids and requests, checked and kept alive.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "compute/engine.h"
#include "error.h"
#include "files/open_model.h"
#include "threads/thread_pool.h"

namespace mobilemoe::python {

namespace nb = nanobind;

using Ids = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using ForcedExperts = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using ChosenExperts = nb::ndarray<int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

inline void require(bool holds, const std::string& message) {
  if (!holds) throw Error(ErrorCode::usage, message);
}

// Token ids are copied: Python may change its array while the engine computes.
inline std::vector<int> ids_of(nb::handle source) {
  Ids array;
  if (nb::try_cast(source, array, false)) return {array.data(), array.data() + array.size()};
  std::vector<int> ids;
  require(nb::try_cast(source, ids), "token ids must be a list of 32-bit integers or an int32 array");
  return ids;
}

// An engine serves one Python thread at a time: the others wait, without holding the interpreter.
struct PyEngine {
  PyEngine(const std::string& path, const EngineOptions& options)
      : engine(open_model(path, options.max_memory == 0), options) {}
  Engine engine;
  std::unique_ptr<std::mutex> mutex = std::make_unique<std::mutex>();
  int forks = count_forks();

  template <class Work>
  auto locked(const Work& work) {
    if (forks != count_forks()) {  // the lock may have been held by a thread that exists only in the parent process
      [[maybe_unused]] const std::mutex* left = mutex.release();
      mutex = std::make_unique<std::mutex>();
      forks = count_forks();
    }
    const nb::gil_scoped_release release;
    const std::lock_guard<std::mutex> lock(*mutex);
    return work();
  }

  // For work of less than a microsecond: where nobody computes it keeps the interpreter, which is slow to come back.
  template <class Work>
  auto locked_briefly(const Work& work) {
    if (forks == count_forks()) {
      const std::unique_lock<std::mutex> lock(*mutex, std::try_to_lock);
      if (lock.owns_lock()) return work();
    }
    return locked(work);
  }
};

using EnginePointer = std::shared_ptr<PyEngine>;

struct PySequence {
  EnginePointer owner;
  std::unique_ptr<Sequence> sequence;
};

// Requests of Python, with what they point to kept alive.
class Requests {
 public:
  Requests(const EnginePointer& owner, const nb::sequence& given, const nb::object& forced, const nb::object& chosen)
      : owner_(owner) {
    for (const nb::handle item : given) take(item);
    require(!requests_.empty(), "requests is empty");
    for (size_t i = 0; i < requests_.size(); ++i) {
      requests_[i].tokens = ids_[i].data();
      requests_[i].forced_experts = experts<ForcedExperts>(forced, "forced_experts", i);
      requests_[i].chosen_experts = experts<ChosenExperts>(chosen, "chosen_experts", i);
    }
  }
  const Request* data() const { return requests_.data(); }
  int count() const { return static_cast<int>(requests_.size()); }
  size_t outputs() const { return outputs_; }

 private:
  void take(nb::handle given) {
    nb::tuple item;
    PySequence* sequence = nullptr;
    Request request;
    require(nb::try_cast(given, item, false) && item.size() == 3 && nb::try_cast(item[0], sequence, false) &&
                sequence != nullptr && nb::try_cast(item[2], request.outputs),
            "a request is a tuple of a sequence, its new token ids and the number of outputs");
    require(sequence->owner == owner_, "a request names a sequence of another engine");
    request.sequence = sequence->sequence.get();
    ids_.push_back(ids_of(item[1]));
    request.count = static_cast<int>(ids_.back().size());
    require(request.outputs >= 0 && request.outputs <= request.count,
            "outputs is " + std::to_string(request.outputs) + ", but must be between 0 and the number of token ids, " +
                std::to_string(request.count));
    outputs_ += static_cast<size_t>(request.outputs);
    requests_.push_back(request);
  }

  // The array for request i out of a list of arrays and Nones, or null.
  template <class Array>
  auto experts(const nb::object& list, const char* name, size_t i) -> decltype(Array().data()) {
    if (list.is_none()) return nullptr;
    nb::sequence arrays;
    require(nb::try_cast(list, arrays) && nb::len(arrays) == requests_.size(),
            std::string(name) + " must have one entry for each request");
    const nb::object entry = arrays[i];
    if (entry.is_none()) return nullptr;
    const Config& config = owner_->engine.model().config;
    Array array;
    require(nb::try_cast(entry, array, false) && array.shape(0) == ids_[i].size() &&
                array.shape(1) == static_cast<size_t>(config.num_hidden_layers) &&
                array.shape(2) == static_cast<size_t>(config.num_experts_per_tok),
            std::string(name) + " must be contiguous int32 arrays [token ids, layers, experts per token]");
    return array.data();
  }

  EnginePointer owner_;
  std::vector<std::vector<int>> ids_;
  std::vector<Request> requests_;
  size_t outputs_ = 0;
};

}  // namespace mobilemoe::python
