#include "files/open_model.h"

#include <filesystem>

#include "error.h"
#include "files/engine_file.h"
#include "files/repack.h"

namespace mobilemoe {

Model open_model(const std::string& path, bool experts) {
  std::error_code ignored;  // a path that cannot be looked at cannot be mapped either, and that error says why
  if (!std::filesystem::is_directory(path, ignored)) return map_engine_file(path, experts);
  if (!experts) {
    throw Error(ErrorCode::usage,
                path + " is a checkpoint, which is kept in memory as a whole: max_memory needs an engine file");
  }
  return repack_in_memory(path);
}

}  // namespace mobilemoe
