// org.mobilemoe.Engine over the C API: what fails becomes an EngineException, and nothing is thrown through Java.
#include <jni.h>

#include <memory>
#include <new>
#include <vector>

#include "mobilemoe.h"

namespace {

struct EngineClose {
  void operator()(mm_engine* engine) const { mm_close(engine); }
};
struct SequenceFree {
  void operator()(mm_sequence* sequence) const { mm_sequence_free(sequence); }
};
struct SamplerFree {
  void operator()(mm_sampler* sampler) const { mm_sampler_free(sampler); }
};

// What one org.mobilemoe.Engine holds. Members are freed from the last to the first: the engine goes last.
struct Text {
  std::unique_ptr<mm_engine, EngineClose> engine;
  std::unique_ptr<mm_sequence, SequenceFree> sequence;
  std::unique_ptr<mm_sampler, SamplerFree> sampler;
  std::vector<float> logits;
};

Text& text_of(jlong handle) { return *reinterpret_cast<Text*>(handle); }

void refuse(JNIEnv* env, const char* sentence) {
  const jclass type = env->FindClass("org/mobilemoe/EngineException");
  if (type != nullptr) env->ThrowNew(type, sentence);
}

// True if the call went well; otherwise an exception is on its way to Java, and the caller returns.
bool passed(JNIEnv* env, mm_status status) {
  if (status != MM_OK) refuse(env, mm_last_error());
  return status == MM_OK;
}

// A Java text in UTF-8, as long as this lives. Paths in an app's storage are ASCII, where Java's UTF-8 is the usual
// one.
class Characters {
 public:
  Characters(JNIEnv* env, jstring text) : env_(env), text_(text), bytes_(env->GetStringUTFChars(text, nullptr)) {}
  Characters(const Characters&) = delete;
  Characters& operator=(const Characters&) = delete;
  ~Characters() {
    if (bytes_ != nullptr) env_->ReleaseStringUTFChars(text_, bytes_);
  }
  const char* get() const { return bytes_; }  // null: Java has no memory left and throws

 private:
  JNIEnv* env_;
  jstring text_;
  const char* bytes_;
};

}  // namespace

extern "C" {

JNIEXPORT void JNICALL Java_org_mobilemoe_Engine_repack(JNIEnv* env, jclass, jstring folder, jstring engine_file) {
  const Characters from(env, folder), to(env, engine_file);
  if (from.get() != nullptr && to.get() != nullptr) passed(env, mm_repack(from.get(), to.get()));
}

JNIEXPORT jlong JNICALL Java_org_mobilemoe_Engine_open(JNIEnv* env, jclass, jstring path, jint threads) {
  const Characters from(env, path);
  if (from.get() == nullptr) return 0;
  mm_options options = mm_default_options();
  options.threads = threads;
  mm_engine* engine = nullptr;
  if (!passed(env, mm_open(from.get(), &options, &engine))) return 0;
  std::unique_ptr<mm_engine, EngineClose> owned(engine);
  try {
    auto text = std::make_unique<Text>();
    text->logits.resize(static_cast<size_t>(mm_describe(engine).vocab_size));
    text->engine = std::move(owned);
    return reinterpret_cast<jlong>(text.release());
  } catch (const std::bad_alloc&) {
    refuse(env, "out of memory");
    return 0;
  }
}

JNIEXPORT void JNICALL Java_org_mobilemoe_Engine_close(JNIEnv*, jclass, jlong handle) { delete &text_of(handle); }

JNIEXPORT jint JNICALL Java_org_mobilemoe_Engine_context(JNIEnv*, jclass, jlong handle) {
  return mm_describe(text_of(handle).engine.get()).context;
}

JNIEXPORT void JNICALL Java_org_mobilemoe_Engine_start(JNIEnv* env, jclass, jlong handle, jdouble temperature,
                                                       jdouble top_p, jlong seed) {
  Text& text = text_of(handle);
  mm_sampling sampling = mm_greedy();
  sampling.temperature = temperature;
  sampling.top_p = top_p;
  sampling.seed = static_cast<uint64_t>(seed);
  mm_sampler* sampler = nullptr;
  if (!passed(env, mm_sampler_new(&sampling, static_cast<int32_t>(text.logits.size()), &sampler))) return;
  text.sampler.reset(sampler);
  text.sequence.reset();  // before the next takes its memory
  mm_sequence* sequence = nullptr;
  if (passed(env, mm_sequence_new(text.engine.get(), 0, &sequence))) text.sequence.reset(sequence);
}

JNIEXPORT void JNICALL Java_org_mobilemoe_Engine_append(JNIEnv* env, jclass, jlong handle, jintArray tokens) {
  static_assert(sizeof(jint) == sizeof(int32_t), "ids are passed on as they are");
  Text& text = text_of(handle);
  if (text.sequence == nullptr) return refuse(env, "start a text before appending to it");
  mm_request request = {};
  request.sequence = text.sequence.get();
  request.count = env->GetArrayLength(tokens);
  request.outputs = 1;
  jint* ids = env->GetIntArrayElements(tokens, nullptr);
  if (ids == nullptr) return;
  request.tokens = reinterpret_cast<const int32_t*>(ids);
  const mm_status status = mm_forward(text.engine.get(), &request, 1, text.logits.data());
  env->ReleaseIntArrayElements(tokens, ids, JNI_ABORT);
  passed(env, status);
}

JNIEXPORT jint JNICALL Java_org_mobilemoe_Engine_choose(JNIEnv* env, jclass, jlong handle) {
  Text& text = text_of(handle);
  if (text.sequence == nullptr || mm_sequence_length(text.sequence.get()) == 0) {
    refuse(env, "append tokens before choosing the next");
    return 0;
  }
  int32_t token = 0;
  passed(env, mm_sample(text.sampler.get(), text.logits.data(), &token));
  return token;
}

}  // extern "C"
