// The names that Python uses for the engine's choices.
#pragma once

#include <string>

#include "compute/routing_options.h"
#include "compute/speculation.h"
#include "kernels/kernels.h"
#include "requests.h"

namespace mobilemoe::python {

inline const char* name_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::usage:
      return "usage";
    case ErrorCode::config:
      return "config";
    case ErrorCode::file:
      return "file";
    case ErrorCode::memory:
      return "memory";
    case ErrorCode::full:
      return "full";
    case ErrorCode::numerics:
      return "numerics";
  }
  return "internal";
}

inline KvType kv_of(const std::string& name) {
  if (name == "int8") return KvType::int8;
  if (name == "f16") return KvType::f16;
  require(name == "f32", "kv is \"" + name + "\", but must be int8, f16 or f32");
  return KvType::f32;
}

inline const char* name_of(KvType kv) { return kv == KvType::int8 ? "int8" : kv == KvType::f16 ? "f16" : "f32"; }

inline Speculate speculate_of(const std::string& name) {
  if (name == "auto") return Speculate::automatic;
  if (name == "lookup") return Speculate::lookup;
  require(name == "draft", "speculate is \"" + name + "\", but must be auto, lookup or draft");
  return Speculate::head;
}

inline Skip skip_of(const std::string& name) {
  if (name == "pair") return Skip::pairs;
  if (name == "token") return Skip::tokens;
  require(name == "random", "skip is \"" + name + "\", but must be pair, token or random");
  return Skip::random;
}

}  // namespace mobilemoe::python
