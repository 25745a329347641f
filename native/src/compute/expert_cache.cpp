#include "compute/expert_cache.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>

#include "compute/routing.h"
#include "error.h"
#include "threads/thread_pool.h"

namespace mobilemoe {
namespace {

constexpr int kReaders = 4;         // reads at the same time
constexpr int kMostWave = 16;       // experts of a step of a long pass
constexpr int kPredictedRows = 16;  // passes of more rows want nearly all experts of a layer
constexpr double kHalfLife = 32;    // tokens after which a use counts half
constexpr double kMostWeight = 1e200;

enum class Progress : uint8_t { empty, queued, reading, there };

struct Place {
  int id = -1;  // layer * experts + expert
  int keepers = 0;
  bool is_ahead = false;    // read on suspicion, and not wanted since
  bool has_memory = false;  // that was written to and not given back
  std::atomic<Progress> progress{Progress::empty};
};

}  // namespace

// What the readers share with the threads that compute; all of it is guarded by the mutex, but for progress, which may
// be looked at without.
struct ExpertCache::State {
  State(const ExpertSource& from, const Model& model, uint8_t* to, size_t most);
  ~State() { join(); }
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  void start();
  void join();
  void read();
  Place* find(int id) { return place_of[id] < 0 ? nullptr : &places[place_of[id]]; }
  int free_place(int wanted_layer, size_t most);
  void put(int id, int at, bool ahead);
  void drop(int at);

  const ExpertSource& source;
  const int experts;
  uint8_t* const memory;
  const size_t count;
  std::unique_ptr<Place[]> places;
  std::vector<int> place_of;  // of each expert, or -1
  std::vector<Ffn> views;     // of each expert that has a place
  std::vector<double> uses;   // of each expert, weighted by age
  std::vector<int> new_uses;  // of this pass
  double weight = 1;          // of a use now
  size_t held = 0;            // places that have memory
  ExpertUse use;
  int reading = 0;  // places that are being read into
  int fault = 0;    // of a read
  int visits = 0;   // of this pass

  std::mutex mutex;
  std::condition_variable wanted, done;
  std::vector<int> urgent, later;  // places to be read into, in this order
  std::vector<std::thread> readers;
  bool stop = false;
};

ExpertCache::State::State(const ExpertSource& from, const Model& model, uint8_t* to, size_t most)
    : source(from),
      experts(model.config.num_local_experts),
      memory(to),
      count(most),
      places(std::make_unique<Place[]>(most)) {
  const size_t all = static_cast<size_t>(experts) * model.layers.size();
  place_of.assign(all, -1);
  views.assign(all, model.layers[0].experts[0]);
  uses.assign(all, 0);
  new_uses.assign(all, 0);
  urgent.reserve(most);
  later.reserve(most);
  use.experts = all;
  use.expert_bytes = from.bytes();
}

void ExpertCache::State::start() {
  try {
    while (readers.size() < kReaders) readers.emplace_back([this] { read(); });
  } catch (const std::system_error&) {
    if (readers.empty()) throw Error(ErrorCode::memory, "the system refuses to start a thread that reads experts");
  }
}

void ExpertCache::State::join() {
  {
    const std::lock_guard<std::mutex> lock(mutex);
    stop = true;
  }
  wanted.notify_all();
  for (std::thread& reader : readers) reader.join();
}

void ExpertCache::State::read() {
  std::unique_lock<std::mutex> lock(mutex);
  for (;;) {
    wanted.wait(lock, [this] { return stop || !urgent.empty() || !later.empty(); });
    if (stop) return;
    std::vector<int>& queue = urgent.empty() ? later : urgent;
    const int at = queue.front();
    queue.erase(queue.begin());
    Place& place = places[at];
    place.progress = Progress::reading;
    ++reading;
    const int id = place.id;
    lock.unlock();
    const int found = source.read(id / experts, id % experts, memory + at * source.bytes());
    lock.lock();
    if (found != 0) fault = found;
    use.bytes_read += source.bytes();
    place.progress = Progress::there;
    --reading;
    done.notify_all();
  }
}

// A place for one more expert where at most `most` may be used: one that is empty, or that of the expert that was used
// least. -1 if all are kept or being read. Experts of `wanted_layer` stay where others can go.
int ExpertCache::State::free_place(int wanted_layer, size_t most) {
  int best = -1;
  bool best_wanted = true;
  for (size_t at = 0; at < count; ++at) {
    const Place& place = places[at];
    if (place.id < 0) {
      if (place.has_memory || held < most) return static_cast<int>(at);
      continue;
    }
    if (place.keepers > 0 || place.progress == Progress::reading) continue;
    const bool is_wanted = place.id / experts == wanted_layer;
    if (best < 0 || is_wanted < best_wanted || (is_wanted == best_wanted && uses[place.id] < uses[places[best].id])) {
      best = static_cast<int>(at);
      best_wanted = is_wanted;
    }
  }
  if (best >= 0) drop(best);
  return best;
}

void ExpertCache::State::drop(int at) {
  Place& place = places[at];
  if (place.progress == Progress::queued) later.erase(std::find(later.begin(), later.end(), at));
  place_of[place.id] = -1;
  place.id = -1;
  place.progress = Progress::empty;
}

void ExpertCache::State::put(int id, int at, bool ahead) {
  Place& place = places[at];
  place.id = id;
  place.keepers = 0;
  place.is_ahead = ahead;
  place.progress = Progress::queued;
  place_of[id] = at;
  views[id] = source.place(memory + at * source.bytes());
  if (!place.has_memory) ++held;
  place.has_memory = true;
  (ahead ? later : urgent).push_back(at);
  wanted.notify_one();
}

ExpertCache::ExpertCache(const Model& model, const Kernels& kernels, size_t places)
    : model_(model),
      kernels_(kernels),
      source_(*model.expert_source),
      most_(std::min(places, model.layers.size() * model.layers[0].experts.size())),
      places_(most_),
      forks_(count_forks()) {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* memory = mmap(nullptr, most_ * source_.bytes(), PROT_READ | PROT_WRITE, kFlags, -1, 0);
  if (memory == MAP_FAILED) {
    throw Error(ErrorCode::memory, "there is no memory for " + std::to_string(most_) + " experts");
  }
  memory_ = static_cast<uint8_t*>(memory);
  const Config& config = model.config;
  const int padded = round_up(config.num_local_experts, kPanel);
  normed_.resize(config.hidden_size);
  logits_.resize(padded);
  scores_.resize(2 * static_cast<size_t>(padded));
  weights_.resize(config.num_experts_per_tok);
  chosen_.resize(config.num_experts_per_tok);
  likely_ = divide_up(3 * config.num_experts_per_tok, 4);
  state_ = std::make_unique<State>(source_, model_, memory_, most_);
}

ExpertCache::~ExpertCache() {
  // A forked child has none of the readers.
  if (forks_ != count_forks()) [[maybe_unused]]
    const State* left = state_.release();
  state_.reset();
  munmap(memory_, most_ * source_.bytes());
}

// A forked child begins with nothing in memory: a lock may have been held by a thread that only its parent has.
ExpertCache::State& ExpertCache::state() {
  if (forks_ != count_forks()) {
    [[maybe_unused]] const State* left = state_.release();
    state_ = std::make_unique<State>(source_, model_, memory_, most_);
    forks_ = count_forks();
  }
  return *state_;
}

size_t ExpertCache::used_bytes() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  return state_->held * source_.bytes();
}

ExpertUse ExpertCache::use() const {
  const std::lock_guard<std::mutex> lock(state_->mutex);
  ExpertUse use = state_->use;
  use.places = places_;
  return use;
}

void ExpertCache::limit(size_t places) {
  State& s = state();
  std::unique_lock<std::mutex> lock(s.mutex);
  places_ = std::min(places, most_);
  while (s.held > places_) {
    const int at = s.free_place(-1, 0);
    if (at < 0) {
      s.done.wait(lock);
    } else {
      madvise(memory_ + at * source_.bytes(), source_.bytes(), MADV_DONTNEED);
      s.places[at].has_memory = false;
      --s.held;
    }
  }
}

void ExpertCache::begin_pass(int rows) {
  rows_ = rows;
  State& s = state();
  s.start();
  s.visits = 0;
  began_ = std::chrono::steady_clock::now();
}

void ExpertCache::end_pass() {
  State& s = *state_;
  std::unique_lock<std::mutex> lock(s.mutex);
  s.weight *= std::exp2(rows_ / kHalfLife);
  if (s.weight > kMostWeight) {
    for (double& use : s.uses) use /= s.weight;
    s.weight = 1;
  }
  for (size_t id = 0; id < s.uses.size(); ++id) {
    s.uses[id] += s.new_uses[id] * s.weight;
    s.new_uses[id] = 0;
  }
  while (!s.later.empty()) s.drop(s.later.back());
  if (rows_ <= kPredictedRows && s.visits > 0) {
    trial_.note(std::chrono::duration<double>(std::chrono::steady_clock::now() - began_).count() / s.visits);
  }
  if (s.fault == 0) return;
  s.done.wait(lock, [&s] { return s.reading == 0; });
  for (size_t at = 0; at < s.count; ++at) {  // nobody knows which of them are whole
    s.places[at].keepers = 0;
    if (s.places[at].progress == Progress::there) s.drop(static_cast<int>(at));
  }
  const int fault = s.fault;
  s.fault = 0;
  source_.fail(fault);
}

int ExpertCache::wave() const { return static_cast<int>(std::min<size_t>(kMostWave, places_ / 2)); }

int ExpertCache::sort(int layer, Visit* visits, int count) const {
  const State& s = *state_;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  const auto is_there = [&](const Visit& visit) { return s.place_of[layer * s.experts + visit.expert] >= 0; };
  // Not std::stable_partition, which takes memory.
  int there = 0;
  for (int i = 0; i < count; ++i) {
    if (is_there(visits[i])) std::rotate(visits + there, visits + i, visits + i + 1), ++there;
  }
  return there;
}

const Ffn* ExpertCache::keep(int layer, const Visit* visits, int count) {
  State& s = *state_;
  std::unique_lock<std::mutex> lock(s.mutex);
  s.visits += count;
  for (int i = 0; i < count; ++i) {  // first, so that none of them makes room for another
    const int id = layer * s.experts + visits[i].expert;
    s.new_uses[id] += visits[i].rows;
    Place* place = s.find(id);
    if (place == nullptr) continue;
    ++place->keepers;
    ++(place->progress == Progress::there && !place->is_ahead ? s.use.hits : s.use.ahead);
    place->is_ahead = false;
    if (place->progress == Progress::queued) {
      const int at = s.place_of[id];
      const auto waiting = std::find(s.later.begin(), s.later.end(), at);
      if (waiting != s.later.end()) {
        s.later.erase(waiting);
        s.urgent.push_back(at);
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    const int id = layer * s.experts + visits[i].expert;
    if (s.find(id) != nullptr) continue;
    int at;
    while ((at = s.free_place(layer, places_)) < 0) s.done.wait(lock);
    s.put(id, at, false);
    ++s.find(id)->keepers;
    ++s.use.misses;
  }
  return &s.views[layer * s.experts];
}

void ExpertCache::release(int layer, const Visit* visits, int count) {
  State& s = *state_;
  const std::lock_guard<std::mutex> lock(s.mutex);
  for (int i = 0; i < count; ++i) --s.find(layer * s.experts + visits[i].expert)->keepers;
}

void ExpertCache::wait(int layer, int expert) {
  State& s = *state_;
  const Place& place = s.places[s.place_of[layer * s.experts + expert]];
  if (place.progress == Progress::there) return;
  std::unique_lock<std::mutex> lock(s.mutex);
  s.done.wait(lock, [&place] { return place.progress == Progress::there; });
}

void ExpertCache::look(int layer, uint8_t* cached) const {
  const State& s = *state_;
  const std::lock_guard<std::mutex> lock(state_->mutex);
  for (int expert = 0; expert < s.experts; ++expert) cached[expert] = s.place_of[layer * s.experts + expert] >= 0;
}

void ExpertCache::read_ahead(int layer, const float* x, int rows, CachePrior* prior) {
  if (layer >= model_.config.num_hidden_layers) return;
  State& s = *state_;
  const auto add = [&](int expert) {
    const int id = layer * s.experts + expert;
    if (s.find(id) != nullptr) return true;
    const int at = s.free_place(layer, places_);
    if (at >= 0) s.put(id, at, true);
    return at >= 0;
  };
  const int experts = s.experts;
  if (rows > kPredictedRows) {
    const std::lock_guard<std::mutex> lock(s.mutex);
    for (int expert = 0, most = wave(); expert < experts && most > 0; ++expert, --most) {
      if (!add(expert)) return;
    }
    return;
  }
  if (prior == nullptr && !trial_.reads_ahead()) return;
  const LayerWeights& weights = model_.layers[layer];
  const Config& config = model_.config;
  Preference preference{};
  if (prior != nullptr) {
    look(layer, prior->cached(layer));
    preference = prior->preference(layer);
  }
  for (int row = 0; row < rows; ++row) {
    kernels_.rms_norm(x + static_cast<size_t>(row) * config.hidden_size, weights.post_attention_norm,
                      config.hidden_size, static_cast<float>(config.rms_norm_eps), normed_.data());
    kernels_.router(weights.router, divide_up(experts, kPanel), config.hidden_size, normed_.data(), 0, 1,
                    logits_.data());
    choose_experts(config, logits_.data(), weights.expert_bias, nullptr, scores_.data(), chosen_.data(),
                   weights_.data(), prior == nullptr ? nullptr : &preference);
    const std::lock_guard<std::mutex> lock(s.mutex);
    for (int slot = 0; slot < likely_; ++slot) {
      if (!add(chosen_[slot])) return;
    }
  }
}

}  // namespace mobilemoe
