// The exception that the engine throws: one sentence for the user, and a code that the C API returns.
#pragma once

#include <stdexcept>
#include <string>

namespace mobilemoe {

enum class ErrorCode {
  usage = 1,     // the call makes no sense, like an id outside the vocabulary or an empty prompt
  config = 2,    // config.json breaks a rule
  file = 3,      // a file is missing, damaged or not what its config says
  memory = 4,    // no memory
  full = 5,      // the context of a sequence is used up
  numerics = 6,  // the weights hold NaN
};

class Error : public std::runtime_error {
 public:
  Error(ErrorCode code, const std::string& message) : std::runtime_error(message), code_(code) {}
  ErrorCode code() const { return code_; }

 private:
  ErrorCode code_;
};

}  // namespace mobilemoe
