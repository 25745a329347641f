#include "api/handles.h"

#include <cstdio>

namespace {

thread_local char last_error[1024] = "";  // of fixed size, because reporting a lack of memory must not allocate

}  // namespace

namespace mobilemoe::api {

mm_status fail(mm_status status, const char* message) {
  std::snprintf(last_error, sizeof(last_error), "%s", message);
  return status;
}

void require(bool holds, const std::string& message) {
  if (!holds) throw Error(ErrorCode::usage, message);
}

void require_pointer(const void* pointer, const char* name) {
  require(pointer != nullptr, std::string(name) + " is a null pointer");
}

}  // namespace mobilemoe::api

const char* mm_last_error(void) { return last_error; }
