#include "files/open_model.h"

#include <filesystem>

#include "files/engine_file.h"
#include "files/repack.h"

namespace mobilemoe {

Model open_model(const std::string& path) {
  std::error_code ignored;  // a path that cannot be looked at cannot be mapped either, and that error says why
  if (std::filesystem::is_directory(path, ignored)) return repack_in_memory(path);
  return map_engine_file(path);
}

}  // namespace mobilemoe
