// One row per thread at a time: greedy rows are an argmax over the stored logits; the others become
// fp32 in scratch memory, thresholds come from bisecting the order over few candidates, and of the
// random race only those tokens are judged exactly that could win it.
//
// The arithmetic that decides (noise.py, reference.py) is single fp32 operations; a fused
// multiply-add would change their bits:
// compile with -ffp-contract=off
#include <algorithm>
#include <climits>
#include <cmath>
#include <limits>
#include <vector>

#include "native.h"
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kLanes = 16;
constexpr int kBlock = 64;  // tokens that share sixteen Philox blocks
enum Error : int64_t { kFine, kNotFinite, kNoTokenLeft };

// A row of `SamplingRows.table`.
struct Knobs {
  double inverse_temperature, top_p, min_p, typical_p;
  int64_t top_k, seed, index, position;
};

// `LogitEdits`, all rows.
struct Edits {
  const int64_t* offsets;
  const double* penalties;
  const int64_t* penalised_ids;
  const int64_t* counts;
  const int64_t* biased_ids;
  const double* biases;
  const int64_t* forbidden_ids;
};

inline uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

inline float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

// Integers that sort as floats do, the two zeros equal.
inline int32_t order_key(float x) {
  int32_t bits = int32_t(bits_of(x + 0.0f));
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

// The least float at or above an integer: for integer-valued w, w >= m iff w >= at_least(m).
inline float at_least(int64_t m) {
  float x = float(m);
  return int64_t(x) < m ? std::nextafter(x, kInfinity) : x;
}

inline int64_t needed_mass(double share, int64_t total) {
  double needed = std::min(std::ceil(share * double(total)), double(total));
  return std::max<int64_t>(1, std::min(int64_t(needed), total));
}

// ---- argmax

struct Peak {
  float value = -kInfinity;
  int64_t first = 0;      // index of the first maximum
  bool is_bad = false;    // NaN or +infinity among them
};

template <class T>
Peak find_peak(const T* x, int64_t size) {
  Peak peak;
  int64_t best_start = 0;
  constexpr int64_t kStep = 512;
  for (int64_t start = 0; start < size; start += kStep) {
    int64_t length = std::min(kStep, size - start);
    float most = -kInfinity;
    int32_t fine = 1;
#pragma omp simd reduction(max : most) reduction(& : fine)
    for (int64_t i = 0; i < length; ++i) {
      float value = native::to_float(x[start + i]);
      most = value > most ? value : most;
      fine &= value < kInfinity ? 1 : 0;
    }
    if (!fine) peak.is_bad = true;
    if (most > peak.value) peak.value = most, best_start = start;
  }
  for (peak.first = best_start; peak.first < size; ++peak.first)
    if (native::to_float(x[peak.first]) == peak.value) break;
  return peak;
}

inline bool is_finite(const Peak& peak) { return !peak.is_bad && peak.value > -kInfinity; }

// ---- random race

// Words in the low halves of lanes; the upper halves hold anything.
#if defined(__AVX512F__)
constexpr int kWide = 8;
#else
constexpr int kWide = 4;
#endif
typedef uint64_t Wide __attribute__((vector_size(kWide * 8)));
typedef uint32_t Narrow __attribute__((vector_size(kWide * 4)));

inline Wide times(Wide words, uint32_t factor) {
#if defined(__AVX512F__)
  return (Wide)_mm512_mul_epu32((__m512i)words, _mm512_set1_epi64(factor));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)words, _mm256_set1_epi64x(factor));
#else
  return (words & 0xffffffffu) * factor;
#endif
}

struct Words {
  uint32_t of[4][kLanes];
};

// Philox4x32-10 of sixteen counters that differ in their third word.
inline Words philox(const Knobs& knobs, const uint32_t* blocks, uint32_t more) {
  Words words;
  for (int start = 0; start < kLanes; start += kWide) {
    Narrow numbers;
    std::memcpy(&numbers, blocks + start, sizeof numbers);
    Wide c0 = Wide{} + uint64_t(knobs.position), c1 = Wide{} + uint64_t(knobs.index);
    Wide c2 = __builtin_convertvector(numbers, Wide), c3 = Wide{} + more;
    uint32_t k0 = uint32_t(knobs.seed), k1 = uint32_t(uint64_t(knobs.seed) >> 32);
    for (int round = 0; round < 10; ++round) {
      Wide product0 = times(c0, 0xD2511F53u), product1 = times(c2, 0xCD9E8D57u);
      c0 = (product1 >> 32) ^ c1 ^ uint64_t(k0);
      c2 = (product0 >> 32) ^ c3 ^ uint64_t(k1);
      c1 = product1;
      c3 = product0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    const Wide* last[4] = {&c0, &c1, &c2, &c3};
    for (int word = 0; word < 4; ++word) {
      Narrow low = __builtin_convertvector(*last[word], Narrow);
      std::memcpy(words.of[word] + start, &low, sizeof low);
    }
  }
  return words;
}

inline uint32_t block_of(int64_t id) { return uint32_t(id / kBlock * kLanes + id % kLanes); }
inline int word_of(int64_t id) { return int(id % kBlock / kLanes); }

// `noise.exponential`.
inline float exponential(uint32_t first, uint32_t second) {
  float exponent = 0.0f, f;
  if (first < 256) {
    f = -(float(first) * 0x1p-32f + (float(second) + 0.5f) * 0x1p-64f);
  } else if (first < 1u << 30) {
    f = -((float(first) + 0.5f) * 0x1p-32f);
  } else {
    uint32_t bits = bits_of((float(~first) + 0.5f) * 0x1p-32f);
    exponent = float(int32_t(bits >> 23) - 126);
    float mantissa = float_of((bits & 0x7fffff) | 0x3f000000);
    if (mantissa < 0.70710678f) {
      exponent -= 1.0f;
      mantissa += mantissa;
    }
    f = mantissa - 1.0f;
  }
  float square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  float tail = f * square * p + exponent * -2.12194440e-4f - square * 0.5f;
  return -(f + tail + exponent * 0.693359375f);
}

// `noise.reciprocal`.
inline float reciprocal(float x) {
  float y = float_of(0x7EF311C7u - bits_of(x));
  for (int i = 0; i < 4; ++i) y = y * (2.0f - x * y);
  return y;
}

// The token whose exponential time, divided by its weight, is least.
class Race {
 public:
  explicit Race(const Knobs& knobs) : knobs_(knobs) {}

  // Judge a token of integer-valued weight, of which the first word is known.
  void enter(int64_t id, float weight, uint32_t first) {
    float rate = weight * reciprocal(exponential(first, first < 256 ? word(id, 1) : 0));
    if (rate > best_ || (rate == best_ && id < winner_)) best_ = rate, winner_ = id;
  }

  // The same, looking the word up.
  void enter(int64_t id, float weight) { enter(id, weight, word(id, 0)); }

  // No exponential is less than its v, nor any v than this by more than rounding.
  bool may_win(float weight, uint32_t first) const { return weight > best_ * bound(first); }
  static float bound(uint32_t first) { return float(first) * (0.9999f * 0x1p-32f); }

  float best() const { return best_; }
  int64_t winner() const { return winner_; }

 private:
  uint32_t word(int64_t id, uint32_t more) const {
    uint32_t blocks[kLanes];
    for (int j = 0; j < kLanes; ++j) blocks[j] = block_of(id);
    return philox(knobs_, blocks, more).of[word_of(id)][0];
  }

  const Knobs& knobs_;
  float best_ = 0.0f;
  int64_t winner_ = 0;
};

// ---- weights

// Weights as integer-valued floats once truncated: `reference.scaled_weights`.
struct Weighing {
  float peak, inverse_temperature;
  int32_t exponent;  // of the unit

  float score(float x) const {
    float y = (x - peak) * inverse_temperature;
    return y < -87.0f ? -87.0f : y;
  }
  float weight(float x) const {
    float y = score(x);
    float n = std::floor(y * 1.44269504f + 0.5f);
    float r = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * float_of(uint32_t(int32_t(n) + 127 + exponent) << 23);
  }
};

// ---- candidates: tokens that may still be kept, by id

struct Scratch {
  std::vector<float> values, weights, maxima;
  std::vector<int32_t> ids, keys;
  std::vector<int64_t> masses;
};

struct Candidates {
  int32_t* ids;
  int32_t* keys;
  int64_t* masses;
  int64_t size = 0;

  // Keep from the greatest key down, equals by id, until `needed` is reached.
  void cut(int64_t needed, bool by_mass, bool ties_stay) {
    int32_t key = last_key(needed, by_mass);
    int64_t above = 0, tie_mass = 0;
    for (int64_t i = 0; i < size; ++i) {
      int64_t worth = by_mass ? masses[i] : 1;
      above += worth & -int64_t(keys[i] > key);
      tie_mass |= worth & -int64_t(keys[i] == key);  // equal keys have equal masses
    }
    int64_t ties = ties_stay ? size : (needed - above + tie_mass - 1) / tie_mass;
    keep_if([&](int64_t i) {
      bool is_tie = keys[i] == key, stays = is_tie & (ties > 0);
      ties -= is_tie;
      return keys[i] > key || stays;
    });
  }

  template <class Function>
  void keep_if(Function keeps) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      bool stays = keeps(i);
      ids[kept] = ids[i];
      keys[kept] = keys[i];
      masses[kept] = masses[i];
      kept += stays;
    }
    size = kept;
  }

  int64_t total() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += masses[i];
    return sum;
  }

 private:
  // Bisects the keys. Each round moves a border to a key that exists, so that few rounds follow
  // once few keys are left.
  int32_t last_key(int64_t needed, bool by_mass) const {
    const int64_t num = size;
    const int32_t* key = keys;
    const int64_t* mass = masses;
    int32_t low = INT_MAX, high = INT_MIN;
    for (int64_t i = 0; i < num; ++i) {
      low = std::min(low, key[i]);
      high = std::max(high, key[i]);
    }
    while (low < high) {
      int32_t middle = int32_t(low + (int64_t(high) - low + 1) / 2);
      int64_t reached = 0;
      int32_t above = INT_MAX, below = INT_MIN;
#pragma omp simd reduction(min : above) reduction(max : below)
      for (int64_t i = 0; i < num; ++i) {
        int32_t up = key[i] >= middle ? key[i] : INT_MAX;
        int32_t down = key[i] >= middle ? INT_MIN : key[i];
        above = up < above ? up : above;
        below = down > below ? down : below;
      }
      for (int64_t i = 0; i < num; ++i) {
        int64_t worth = by_mass ? mass[i] : 1;
        reached += worth & -int64_t(key[i] >= middle);
      }
      if (reached >= needed) low = above;
      else high = below;
    }
    return low;
  }
};

// The places where x >= bound, ascending.
int64_t collect(const float* x, int64_t size, float bound, int32_t* ids) {
  int64_t found = 0, i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    int32_t any = 0;
    for (int j = 0; j < kBlock; ++j) any |= x[i + j] >= bound ? 1 : 0;
    if (!any) continue;
    for (int j = 0; j < kBlock; ++j) {
      ids[found] = int32_t(i + j);
      found += x[i + j] >= bound;
    }
  }
  for (; i < size; ++i) {
    ids[found] = int32_t(i);
    found += x[i] >= bound;
  }
  return found;
}

// A value that at least k of the x reach: the k-th of the maxima of 4 * k disjoint groups or more.
float top_k_bound(const float* x, int64_t size, int64_t k, std::vector<float>& maxima) {
  constexpr int64_t kGroups = 64;
  int64_t group_size = std::min<int64_t>(64, size / (4 * k));
  if (group_size < 2) return -kInfinity;
  maxima.clear();
  for (int64_t start = 0; start < size; start += group_size * kGroups) {
    int64_t length = std::min(group_size * kGroups, size - start);
    float most[kGroups];
    for (int j = 0; j < kGroups; ++j) most[j] = -kInfinity;
    for (int64_t i = 0; i + kGroups <= length; i += kGroups)
      for (int j = 0; j < kGroups; ++j) {
        float value = x[start + i + j];
        most[j] = value > most[j] ? value : most[j];
      }
    maxima.insert(maxima.end(), most, most + kGroups);
  }
  if (k > int64_t(maxima.size())) return -kInfinity;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

class Row {
 public:
  Row(const Knobs& knobs, const float* x, int64_t size, const Peak& peak, Scratch& scratch)
      : knobs_(knobs), x_(x), size_(size), peak_(peak), scratch_(scratch), race_(knobs) {
    int32_t exponent = 62;
    for (int64_t rest = size; rest; rest >>= 1) --exponent;
    weighing_ = {peak.value, float(knobs.inverse_temperature), exponent};
    least_ = std::max<int64_t>(1, int64_t(knobs.min_p * double(int64_t(1) << exponent)));
  }

  void draw(int64_t& token_id, int64_t& num_kept) {
    has_top_k_ = knobs_.top_k > 0 && knobs_.top_k < size_;
    if (!has_top_k_ && knobs_.top_p >= 1.0 && knobs_.typical_p >= 1.0) {
      num_kept = race_all();
    } else {
      Candidates kept = select();
      num_kept = kept.size;
      race_some(kept);
    }
    token_id = race_.winner();
  }

 private:
  // All tokens of sufficient weight.
  int64_t race_all() {
    race_.enter(peak_.first, weighing_.weight(peak_.value));
    float least = at_least(least_);
    int64_t kept = 0;
    for (int64_t start = 0; start < size_; start += kBlock) {
      int length = int(std::min<int64_t>(kBlock, size_ - start));
      float padded[kBlock], weights[kBlock];
      const float* x = x_ + start;
      if (length < kBlock) {
        for (int j = 0; j < kBlock; ++j) padded[j] = j < length ? x[j] : -kInfinity;
        x = padded;
      }
      int32_t fine = 0;
      for (int j = 0; j < kBlock; ++j) {
        float weight = weighing_.weight(x[j]);
        weights[j] = weight >= least ? weight : 0.0f;
        fine += weight >= least ? 1 : 0;
      }
      if (!fine) continue;
      kept += fine;
      uint32_t blocks[kLanes];
      for (int j = 0; j < kLanes; ++j) blocks[j] = uint32_t(start / kBlock * kLanes + j);
      Words words = philox(knobs_, blocks, 0);
      float best = race_.best();
      int32_t any = 0;
      for (int word = 0; word < 4; ++word)
        for (int j = 0; j < kLanes; ++j)
          any |= weights[word * kLanes + j] > best * Race::bound(words.of[word][j]) ? 1 : 0;
      if (!any) continue;
      for (int j = 0; j < kBlock; ++j) {
        uint32_t first = words.of[j / kLanes][j % kLanes];
        if (race_.may_win(weights[j], first))
          race_.enter(start + j, float(int64_t(weights[j])), first);
      }
    }
    return kept;
  }

  void race_some(const Candidates& kept) {
    for (int64_t start = 0; start < kept.size; start += kLanes) {
      int length = int(std::min<int64_t>(kLanes, kept.size - start));
      uint32_t blocks[kLanes] = {};
      for (int j = 0; j < length; ++j) blocks[j] = block_of(kept.ids[start + j]);
      Words words = philox(knobs_, blocks, 0);
      for (int j = 0; j < length; ++j) {
        int64_t id = kept.ids[start + j];
        uint32_t first = words.of[word_of(id)][j];
        float weight = float(kept.masses[start + j]);
        if (race_.may_win(weight, first)) race_.enter(id, weight, first);
      }
    }
  }

  // top_k, top_p, min_p and typical_p, one after the other.
  Candidates select() {
    scratch_.ids.resize(size_);
    scratch_.keys.resize(size_);
    scratch_.masses.resize(size_);
    Candidates some{scratch_.ids.data(), scratch_.keys.data(), scratch_.masses.data()};
    int64_t total = -1;
    if (has_top_k_) {
      float bound = top_k_bound(x_, size_, knobs_.top_k, scratch_.maxima);
      some.size = collect(x_, size_, bound, some.ids);
    } else {
      total = collect_heavy(some);
    }
    scratch_.weights.resize(size_);
    float* values = scratch_.weights.data();
    for (int64_t i = 0; i < some.size; ++i) values[i] = x_[some.ids[i]];
    for (int64_t i = 0; i < some.size; ++i) some.keys[i] = order_key(values[i]);
    for (int64_t i = 0; i < some.size; ++i) some.masses[i] = int64_t(weighing_.weight(values[i]));
    if (has_top_k_) some.cut(knobs_.top_k, false, false);
    if (knobs_.top_p < 1.0)
      some.cut(needed_mass(knobs_.top_p, total < 0 ? some.total() : total), true, false);
    some.keep_if([&](int64_t i) { return some.masses[i] >= least_; });
    if (knobs_.typical_p < 1.0) keep_typical(some);
    return some;
  }

  // Tokens that a nucleus may hold, and the mass of all. Those below (1 - p) / V of the mass hold
  // less than 1 - p together; half of that leaves room for rounding.
  int64_t collect_heavy(Candidates& some) {
    scratch_.weights.resize(size_);
    float* weights = scratch_.weights.data();
    int64_t total = 0;
    for (int64_t i = 0; i < size_; ++i) {
      weights[i] = weighing_.weight(x_[i]);
      total += int64_t(weights[i]);
    }
    double spared = knobs_.top_p < 1.0 ? (1.0 - knobs_.top_p) * double(total) : 0.0;
    float bound = at_least(std::max<int64_t>(1, int64_t(spared) / size_ / 2 + 1));
    some.size = collect(weights, size_, bound, some.ids);
    return total;
  }

  // See `reference._keep_typical`.
  void keep_typical(Candidates& some) {
    int64_t total = some.total(), weighted = 0;
    for (int64_t i = 0; i < some.size; ++i)
      weighted += int64_t(float(some.masses[i]) * -weighing_.score(x_[some.ids[i]]));
    float mean = float(weighted) * reciprocal(float(total));
    for (int64_t i = 0; i < some.size; ++i)
      some.keys[i] = -int32_t(bits_of(std::fabs(-weighing_.score(x_[some.ids[i]]) - mean)));
    some.cut(needed_mass(knobs_.typical_p, total), true, true);
  }

  const Knobs& knobs_;
  const float* x_;
  int64_t size_;
  const Peak& peak_;
  Scratch& scratch_;
  Race race_;
  Weighing weighing_;
  int64_t least_;  // weight that min_p leaves
  bool has_top_k_ = false;
};

// ---- edits

// fp32, kept finite, except that a token that was impossible stays so.
inline float finite(double changed, float before) {
  constexpr double kMost = std::numeric_limits<float>::max();
  if (before == -kInfinity) return before;
  return float(changed > kMost ? kMost : changed < -kMost ? -kMost : changed);
}

void edit(float* x, const Edits& edits, int64_t row, int64_t rows) {
  const double* penalties = edits.penalties + row * 3;
  for (int64_t i = edits.offsets[row]; i < edits.offsets[row + 1]; ++i) {
    float& logit = x[edits.penalised_ids[i]];
    double value = logit, count = double(edits.counts[i]);
    double changed = value > 0 ? value / penalties[0] : value * penalties[0];
    changed -= count * penalties[1] + (count > 0 ? 1.0 : 0.0) * penalties[2];
    logit = finite(changed, logit);
  }
  const int64_t* biased = edits.offsets + (rows + 1);
  for (int64_t i = biased[row]; i < biased[row + 1]; ++i) {
    float& logit = x[edits.biased_ids[i]];
    logit = finite(double(logit) + edits.biases[i], logit);
  }
  const int64_t* forbidden = biased + (rows + 1);
  for (int64_t i = forbidden[row]; i < forbidden[row + 1]; ++i)
    x[edits.forbidden_ids[i]] = -kInfinity;
}

bool is_edited(const Edits& edits, int64_t row, int64_t rows) {
  for (int list = 0; list < 3; ++list) {
    const int64_t* offsets = edits.offsets + list * (rows + 1);
    if (offsets[row] < offsets[row + 1]) return true;
  }
  return false;
}

template <class T>
void sample_row(const T* logits, int64_t size, const Knobs& knobs, const Edits* edits, int64_t row,
                int64_t rows, int64_t& token_id, int64_t& error, int64_t& num_kept) {
  token_id = num_kept = 0;
  Peak peak = find_peak(logits, size);
  error = is_finite(peak) ? kFine : kNotFinite;
  if (error != kFine) return;
  bool changes = edits && is_edited(*edits, row, rows);
  bool greedy = std::isinf(knobs.inverse_temperature);
  if (greedy && !changes) {
    token_id = peak.first;
    num_kept = 1;
    return;
  }
  // Kept between steps: fresh memory of this size costs more page faults than the arithmetic takes.
  static thread_local Scratch scratch;
  const float* x;
  if constexpr (std::is_same_v<T, float>) x = logits;
  if (changes || !std::is_same_v<T, float>) {
    scratch.values.resize(size);
    float* values = scratch.values.data();
    for (int64_t i = 0; i < size; ++i) values[i] = native::to_float(logits[i]);
    x = values;
    if (changes) {
      edit(values, *edits, row, rows);
      peak = find_peak(values, size);
      error = is_finite(peak) ? kFine : kNoTokenLeft;
      if (error != kFine) return;
    }
  }
  if (greedy) {
    token_id = peak.first;
    num_kept = 1;
    return;
  }
  Row(knobs, x, size, peak, scratch).draw(token_id, num_kept);
}

}  // namespace

extern "C" void tandem_sample_tokens(int64_t dtype, const void* logits, int64_t stride,
                                     const void* table, const void* offsets, const void* penalties,
                                     const void* penalised_ids, const void* counts,
                                     const void* biased_ids, const void* biases,
                                     const void* forbidden_ids, void* token_ids, void* errors,
                                     void* num_kept, int64_t rows, int64_t size) {
  Edits edits{(const int64_t*)offsets,       (const double*)penalties, (const int64_t*)penalised_ids,
              (const int64_t*)counts,        (const int64_t*)biased_ids, (const double*)biases,
              (const int64_t*)forbidden_ids};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
#pragma omp parallel for schedule(dynamic) if (native::worth_threads(rows * size))
    for (int64_t row = 0; row < rows; ++row)
      sample_row((const T*)logits + row * stride, size, ((const Knobs*)table)[row],
                 offsets ? &edits : nullptr, row, rows, ((int64_t*)token_ids)[row],
                 ((int64_t*)errors)[row], ((int64_t*)num_kept)[row]);
  });
}
