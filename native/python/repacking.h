// From a checkpoint to an engine file, for Python.
#pragma once

#include <nanobind/nanobind.h>

#include <cstring>
#include <string>

#include "files/engine_file.h"
#include "files/repack.h"
#include "requests.h"

namespace mobilemoe::python {

// Hands the progress of a repack to a Python function, whose exception stops the work.
struct Progress {
  nb::object call;
  std::exception_ptr error;

  static bool tell(size_t done, size_t total, void* context) {
    auto& self = *static_cast<Progress*>(context);
    const nb::gil_scoped_acquire acquire;
    try {
      self.call(done, total);
      return true;
    } catch (...) {
      self.error = std::current_exception();
      return false;
    }
  }
};

inline void repack(const std::string& folder, const std::string& path, const nb::object& call,
                   const nb::object& origin) {
  Progress progress{call, nullptr};
  Fingerprint taken{};
  if (!origin.is_none()) {
    nb::bytes bytes;
    require(nb::try_cast(origin, bytes) && bytes.size() == taken.size(), "origin must be a fingerprint of 32 bytes");
    std::memcpy(taken.data(), bytes.data(), taken.size());
  }
  try {
    const nb::gil_scoped_release release;
    write_engine_file(folder, path, origin.is_none() ? nullptr : &taken, call.is_none() ? nullptr : &Progress::tell,
                      &progress);
  } catch (const Error&) {
    if (!progress.error) throw;
  }
  if (progress.error) std::rethrow_exception(progress.error);
}

}  // namespace mobilemoe::python
