// What the handles of the C API are, and how its functions are written: no exception leaves them.
#pragma once

#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "compute/engine.h"
#include "compute/sampler.h"
#include "error.h"
#include "mobilemoe.h"

struct mm_engine {
  mm_engine(mobilemoe::Model model, const mobilemoe::EngineOptions& options) : engine(std::move(model), options) {}
  mobilemoe::Engine engine;
  std::vector<mobilemoe::Request> requests;  // kept, so that a step allocates nothing
  std::vector<mobilemoe::Score> scores;
  std::vector<mobilemoe::Step> steps;
};

struct mm_sequence {
  mm_engine* engine;
  std::unique_ptr<mobilemoe::Sequence> sequence;
};

struct mm_sampler {
  mm_sampler(const mobilemoe::Sampling& sampling, int vocab_size) : sampler(sampling, vocab_size) {}
  mobilemoe::Sampler sampler;
};

struct mm_speculation {
  const mm_engine* engine;
  std::unique_ptr<mobilemoe::Speculation> speculation;
};

namespace mobilemoe::api {

// Leaves the message to mm_last_error and returns the status.
mm_status fail(mm_status status, const char* message);

template <class Work>
mm_status guarded(const Work& work) noexcept {
  try {
    work();
    return MM_OK;
  } catch (const Error& error) {
    return fail(static_cast<mm_status>(error.code()), error.what());
  } catch (const std::bad_alloc&) {
    return fail(MM_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return fail(MM_INTERNAL, error.what());
  } catch (...) {
    return fail(MM_INTERNAL, "an unknown fault of the engine");
  }
}

void require(bool holds, const std::string& message);
void require_pointer(const void* pointer, const char* name);

// The number behind an enum's value, read as an int: C may store any number in an enum, which is undefined in C++.
template <class Enum>
int number_of(const Enum& value) {
  int number = 0;
  static_assert(sizeof(number) == sizeof(value));
  std::memcpy(&number, &value, sizeof(number));
  return number;
}

}  // namespace mobilemoe::api
