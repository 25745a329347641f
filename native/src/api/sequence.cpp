// The C API: texts and their keys and values.
#include <algorithm>

#include "api/handles.h"
#include "files/session_file.h"

using namespace mobilemoe::api;

namespace {

void require_own(const mm_engine* engine, const mm_sequence* sequence, const char* path) {
  require_pointer(engine, "engine");
  require_pointer(sequence, "sequence");
  require_pointer(path, "path");
  require(sequence->engine == engine, "the sequence belongs to another engine");
}

}  // namespace

mm_status mm_sequence_new(mm_engine* engine, int32_t capacity, mm_sequence** sequence) {
  return guarded([&] {
    require_pointer(engine, "engine");
    require_pointer(sequence, "sequence");
    auto made = std::make_unique<mm_sequence>();
    made->engine = engine;
    made->sequence = engine->engine.new_sequence(capacity);
    *sequence = made.release();
  });
}

void mm_sequence_free(mm_sequence* sequence) { delete sequence; }

int32_t mm_sequence_length(const mm_sequence* sequence) {
  return sequence == nullptr ? 0 : sequence->sequence->length();
}

int32_t mm_sequence_tokens(const mm_sequence* sequence, int32_t* tokens, int32_t count) {
  if (sequence == nullptr || tokens == nullptr) return 0;
  const std::vector<int>& held = sequence->sequence->tokens();
  count = std::clamp(count, 0, static_cast<int32_t>(held.size()));
  std::copy_n(held.begin(), count, tokens);
  return count;
}

mm_status mm_sequence_truncate(mm_sequence* sequence, int32_t length) {
  return guarded([&] {
    require_pointer(sequence, "sequence");
    sequence->sequence->truncate(length);
  });
}

mm_status mm_sequence_copy(mm_sequence* to, const mm_sequence* from, int32_t length) {
  return guarded([&] {
    require_pointer(to, "to");
    require_pointer(from, "from");
    require(to->engine == from->engine, "to and from are sequences of two engines");
    to->engine->engine.make_room(to->engine->engine.kv_bytes(length));
    to->sequence->copy_from(*from->sequence, length);
  });
}

mm_status mm_sequence_save(const mm_engine* engine, const mm_sequence* sequence, const char* path) {
  return guarded([&] {
    require_own(engine, sequence, path);
    mobilemoe::save_sequence(*sequence->sequence, path, engine->engine.model().fingerprint);
  });
}

mm_status mm_sequence_load(const mm_engine* engine, mm_sequence* sequence, const char* path) {
  return guarded([&] {
    require_own(engine, sequence, path);
    mobilemoe::load_sequence(*sequence->sequence, path, engine->engine.model().fingerprint);
  });
}
