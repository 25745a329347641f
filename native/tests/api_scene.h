// The bundled nano model through the C API, for its tests.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "mobilemoe.h"

using EnginePointer = std::unique_ptr<mm_engine, void (*)(mm_engine*)>;
using SequencePointer = std::unique_ptr<mm_sequence, void (*)(mm_sequence*)>;

inline const std::vector<int32_t> kPrompt = {16378, 791, 640, 300, 41, 7};

inline EnginePointer open_nano() {
  mm_options options = mm_default_options();
  options.threads = 2;
  mm_engine* engine = nullptr;
  CHECK_EQ(mm_open(MOBILEMOE_NANO, &options, &engine), MM_OK);
  return {engine, mm_close};
}

inline SequencePointer new_sequence(const EnginePointer& engine, int32_t capacity = 0) {
  mm_sequence* sequence = nullptr;
  CHECK_EQ(mm_sequence_new(engine.get(), capacity, &sequence), MM_OK);
  return {sequence, mm_sequence_free};
}

inline mm_request request_of(const SequencePointer& sequence, const std::vector<int32_t>& tokens, int32_t outputs) {
  return {sequence.get(), tokens.data(), static_cast<int32_t>(tokens.size()), outputs};
}

inline std::vector<float> forward(const EnginePointer& engine, const SequencePointer& sequence,
                                  const std::vector<int32_t>& tokens, int32_t outputs = 1) {
  std::vector<float> logits(static_cast<size_t>(outputs * mm_describe(engine.get()).vocab_size));
  const mm_request request = request_of(sequence, tokens, outputs);
  CHECK_EQ(mm_forward(engine.get(), &request, 1, logits.data()), MM_OK);
  return logits;
}

inline void check_refused(mm_status status, const char* words, mm_status wanted = MM_USAGE) {
  CHECK_EQ(status, wanted);
  if (!std::strstr(mm_last_error(), words)) CHECK_EQ(std::string(mm_last_error()), words);
}
