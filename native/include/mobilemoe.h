/* MobileMoE: small mixture-of-experts language models on a CPU, INT4 all the way.
 *
 * Every function that can fail returns a status (0: fine) and leaves one sentence in mm_last_error(), which belongs to
 * the calling thread. An engine and its sequences are for one thread at a time; other engines are independent. A forked
 * child may go on with them, with threads of its own, and may close them.
 */
#ifndef MOBILEMOE_H
#define MOBILEMOE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define MM_API __declspec(dllexport)
#else
#define MM_API __attribute__((visibility("default")))
#endif

typedef enum {
  MM_OK = 0,
  MM_USAGE = 1,    /* the call cannot mean anything: an id outside the vocabulary, an empty prompt */
  MM_CONFIG = 2,   /* config.json breaks a rule */
  MM_FILE = 3,     /* a file is missing, damaged or not what its config says */
  MM_MEMORY = 4,   /* out of memory */
  MM_FULL = 5,     /* the context of a sequence is used up */
  MM_NUMERICS = 6, /* the weights hold NaN */
  MM_INTERNAL = 7  /* a fault of the engine itself */
} mm_status;

typedef enum { MM_KV_INT8 = 0, MM_KV_F16 = 1, MM_KV_F32 = 2 } mm_kv;

typedef struct mm_engine mm_engine;
typedef struct mm_sequence mm_sequence;
typedef struct mm_sampler mm_sampler;
typedef struct mm_speculation mm_speculation;

typedef struct {
  int32_t threads;          /* 0: one for each fast physical core that the process may use */
  mm_kv kv;                 /* how keys and values are kept */
  int32_t fp32_activations; /* 1: exact and slow; 0: int8 */
  /* Bytes that the whole process may come to have, what it had before included; 0: no limit. With a limit, `path` is an
   * engine file: experts that do not fit are read from it when they are needed. The results are the same. */
  uint64_t max_memory;
  /* Faster at a cost in quality, all off by default: fewer experts of each token than the model's (0: as many); experts
   * in memory are preferred so strongly when tokens are written, for max_memory (0: not), but for the best always_top
   * of each token (-1: half of them); of a prompt's work in routed experts about this share is done (0: all). With
   * cache_prior or capacity a text depends on what was computed before or beside it, and nothing can be guessed. */
  int32_t experts_per_token;
  int32_t always_top;
  double cache_prior;
  double capacity;
} mm_options;

typedef struct {
  int32_t vocab_size, layers, context, active_experts;
  uint64_t file_bytes;
  int32_t threads;
  const char* isa; /* the instruction set in use: lives as long as the engine */
} mm_info;

typedef struct {
  mm_sequence* sequence;
  const int32_t* tokens; /* to append */
  int32_t count;         /* of tokens: at least 1 */
  int32_t outputs;       /* logits are wanted behind the last `outputs` of them: 0 .. count */
} mm_request;

typedef struct {
  float logprob;     /* of the target, in nats */
  int32_t is_greedy; /* 1: no token is likelier */
} mm_score;

typedef struct {
  double temperature;        /* 0: greedy */
  int32_t top_k;             /* 0: off */
  double top_p;              /* 1: off */
  double min_p;              /* 0: off */
  double repetition_penalty; /* 1: off */
  double presence_penalty;   /* 0: off */
  double frequency_penalty;  /* 0: off */
  uint64_t seed;
  const int32_t* bias_tokens; /* logit bias: bias_count ids and what is added to each */
  const float* bias_values;
  int32_t bias_count;
} mm_sampling;

typedef enum {
  MM_SPECULATE_AUTO = 0,   /* what repeats itself in the text is guessed, and what the draft head finds likely where the
                              engine has one, as long as that makes it faster */
  MM_SPECULATE_LOOKUP = 1, /* whether it does or not: to measure it */
  MM_SPECULATE_DRAFT = 2   /* what the draft head guesses, whether it makes it faster or not */
} mm_speculate;

#define MM_MOST_DRAFTS 4 /* tokens that one step may add beside the first */

/* A text that mm_step continues. */
typedef struct {
  mm_sequence* sequence;
  const int32_t* tokens; /* to append: first the prompt, then always the last token chosen */
  int32_t count;         /* of these: at least 1 */
  mm_sampler* sampler;
  mm_speculation* speculation;        /* for this text alone; or NULL: one token a step */
  int32_t chosen[1 + MM_MOST_DRAFTS]; /* the next tokens, the same as without speculation */
  int32_t chosen_count;               /* of these: at least 1 */
} mm_text;

typedef struct {
  int64_t passes;   /* of one text, with guesses in them */
  int64_t proposed; /* tokens guessed */
  int64_t accepted; /* of these, what the model chose too */
} mm_drafts;

MM_API const char* mm_last_error(void);
MM_API const char* mm_version(void);
/* The instruction sets that this build has and this machine can run, best first, ended by NULL. */
MM_API const char* const* mm_instruction_sets(void);

MM_API mm_options mm_default_options(void);
MM_API mm_sampling mm_greedy(void);

/* Rewrites the INT4 checkpoint in `folder` as an engine file: the same nibbles and scales in kernel-ready order. */
MM_API mm_status mm_repack(const char* folder, const char* engine_file);
/* Reads all of an engine file: MM_FILE unless every byte is the one that was written. mm_open does not, it maps. */
MM_API mm_status mm_verify(const char* engine_file);
/* `path` is an engine file, or a checkpoint's folder, which is then repacked into memory. */
MM_API mm_status mm_open(const char* path, const mm_options* options, mm_engine** engine);
MM_API void mm_close(mm_engine* engine); /* after all its sequences have been freed */
MM_API mm_info mm_describe(const mm_engine* engine);

MM_API mm_status mm_sequence_new(mm_engine* engine, int32_t capacity, mm_sequence** sequence); /* 0: the context */
MM_API void mm_sequence_free(mm_sequence* sequence);
MM_API int32_t mm_sequence_length(const mm_sequence* sequence);
/* Copies the first `count` of the tokens that the sequence holds, or all if it has fewer; returns their number. */
MM_API int32_t mm_sequence_tokens(const mm_sequence* sequence, int32_t* tokens, int32_t count);
/* The memory that the keys and values of `tokens` tokens of one sequence fill, in bytes. */
MM_API uint64_t mm_kv_bytes(const mm_engine* engine, int32_t tokens);
MM_API mm_status mm_sequence_truncate(mm_sequence* sequence, int32_t length);
MM_API mm_status mm_sequence_copy(mm_sequence* to, const mm_sequence* from, int32_t length);
MM_API mm_status mm_sequence_save(const mm_engine* engine, const mm_sequence* sequence, const char* path);
MM_API mm_status mm_sequence_load(const mm_engine* engine, mm_sequence* sequence, const char* path);

/* logits [sum of outputs][vocab_size]. What a sequence gets does not depend on the others. */
MM_API mm_status mm_forward(mm_engine* engine, const mm_request* requests, int32_t count, float* logits);
/* targets and scores [sum of outputs]. */
MM_API mm_status mm_score_targets(mm_engine* engine, const mm_request* requests, int32_t count, const int32_t* targets,
                                  mm_score* scores);

MM_API mm_status mm_sampler_new(const mm_sampling* sampling, int32_t vocab_size, mm_sampler** sampler);
MM_API void mm_sampler_free(mm_sampler* sampler);
MM_API mm_status mm_sampler_see(mm_sampler* sampler, const int32_t* tokens, int32_t count);
MM_API mm_status mm_sample(mm_sampler* sampler, const float* logits, int32_t* token);

/* Takes the draft head in the file draft.safetensors of the model to guess with; before there are sequences. */
MM_API mm_status mm_load_draft(mm_engine* engine, const char* path);
MM_API mm_status mm_speculation_new(mm_engine* engine, mm_speculate how, mm_speculation** speculation);
MM_API void mm_speculation_free(mm_speculation* speculation); /* before its engine is closed */
MM_API mm_drafts mm_count_drafts(const mm_engine* engine);
/* Appends the tokens of each text and chooses what follows. A sequence then holds everything but its last token. */
MM_API mm_status mm_step(mm_engine* engine, mm_text* texts, int32_t count);

#ifdef __cplusplus
}
#endif

#endif
