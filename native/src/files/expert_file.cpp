#include "files/expert_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "error.h"

namespace mobilemoe {

ExpertFile::ExpertFile(std::shared_ptr<const MappedFile> file, std::string path, const Config& config,
                       const EngineLayout& layout)
    : file_(std::move(file)),
      path_(std::move(path)),
      shape_(shape_of_ffn(config.hidden_size, config.intermediate_size, config.expert_axis)),
      bytes_(expert_bytes(config)) {
  for (int layer = 0; layer < config.num_hidden_layers; ++layer) {
    offsets_.push_back(layout.offset(layer_stem(layer) + "experts"));
  }
#if defined(O_DIRECT)
  fcntl(file_->descriptor(), F_SETFL, O_DIRECT);
#elif defined(F_NOCACHE)
  fcntl(file_->descriptor(), F_NOCACHE, 1);
#endif
}

int ExpertFile::read(int layer, int expert, uint8_t* to) const {
  size_t offset = offsets_[layer] + expert * bytes_;
  for (size_t left = bytes_; left > 0;) {
    const ssize_t got = pread(file_->descriptor(), to, left, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return errno;
    if (got == 0) return ENODATA;
    to += got;
    offset += got;
    left -= got;
  }
  return 0;
}

void ExpertFile::fail(int fault) const {
  throw Error(ErrorCode::file,
              path_ + " cannot be read: " + (fault == ENODATA ? "it was cut off" : std::strerror(fault)));
}

}  // namespace mobilemoe
