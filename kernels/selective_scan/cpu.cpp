// The selective scan, row after row: the states of a few heads stay in the cache of the core that
// has them.
#include <vector>

#include "lanes.h"
#include "pieces.h"

namespace {

using native::Lanes, native::kLanes, native::fill, native::larger, native::multiply_add;

constexpr float kLog2E = 1.442695041f;
constexpr int64_t kChannels = 64;  // of the heads that one thread takes, one head at least

struct Scan {
  int64_t heads, head_dim, size, groups;
  int64_t x_stride, dt_stride, b_stride, c_stride;
  const float *a, *d, *dt_bias;
  float least, greatest;
};

// max(x, 0) + log(1 + e) with e = exp(-|x|), by the series of 2 artanh(e / (2 + e)).
inline Lanes softplus(Lanes x) {
  Lanes e = native::exp2_nonpositive(larger(x, -x) * -kLog2E);
  Lanes s = e / (e + 2.0f), square = s * s, sum = fill(2.0f / 15);
  for (int n = 13; n > 0; n -= 2) sum = multiply_add(sum, square, fill(2.0f / n));
  return multiply_add(sum, s, larger(fill(0.0f), x));
}

inline void store_some(float* to, Lanes x, int64_t count) {
  if (count >= kLanes) return native::store(to, x);
  std::memcpy(to, &x, count * sizeof(float));
}

// One row of a state: S ← S · fade + change · b. Returns S · c. The arrays b and c have zeros behind
// their ends. `before` is null for a state of zeros.
template <class Fade>
inline float step_row(Fade fade, float change, const float* b, const float* c, const float* before,
                      float* state, int64_t size) {
  Lanes sum{}, changes = fill(change);
  for (int64_t i = 0; i < size; i += kLanes) {
    int64_t count = size - i;
    Lanes s = before ? native::load_some(before + i, count) : Lanes{};
    s = multiply_add(s, fade(i), changes * native::load_lanes(b + i));
    store_some(state + i, s, count);
    sum = multiply_add(s, native::load_lanes(c + i), sum);
  }
  return native::sum(sum);
}

template <class T>
const float* widened(const T* row, int64_t size, std::vector<float>& floats) {
  floats.resize(size + kLanes);
  for (int64_t i = 0; i < size; ++i) floats[i] = native::to_float(row[i]);
  return floats.data();
}

// Neighbouring heads of one sequence. Pointers are to its first row; those to states and to `a` are
// to the first head's.
template <class T, bool has_matrix>
class Heads {
 public:
  Heads(const Scan& scan, int64_t first, int64_t count) : scan_(scan), first_(first), count_(count) {
    steps_.resize(count + kLanes);
    fades_.resize(count + kLanes);
  }

  void run(const T* x, const T* dt, const T* b, const T* c, const float* before, float* state,
           T* out, int64_t rows) {
    int64_t channels = scan_.heads * scan_.head_dim, state_size = scan_.head_dim * scan_.size;
    for (int64_t t = 0; t < rows; ++t) {
      find_steps(dt + t * scan_.dt_stride + first_);
      int64_t group = -1;
      for (int64_t j = 0; j < count_; ++j) {
        int64_t head = first_ + j, own = head / (scan_.heads / scan_.groups);
        if (own != group) {
          group = own;
          b_ = widened(b + t * scan_.b_stride + group * scan_.size, scan_.size, b_floats_);
          c_ = widened(c + t * scan_.c_stride + group * scan_.size, scan_.size, c_floats_);
        }
        run_row(j, x + t * scan_.x_stride + head * scan_.head_dim,
                before ? before + j * state_size : nullptr, state + j * state_size,
                out + t * channels + head * scan_.head_dim);
      }
      before = state;
    }
  }

 private:
  void find_steps(const T* dt) {
    for (int64_t j = 0; j < count_; j += kLanes) {
      int64_t count = count_ - j;
      Lanes step = softplus(native::load_some(dt + j, count) +
                            native::load_some(scan_.dt_bias + first_ + j, count));
      step = -larger(fill(-scan_.greatest), -larger(fill(scan_.least), step));
      native::store(&steps_[j], step);
      if (has_matrix) continue;
      Lanes rates = native::load_some(scan_.a + first_ + j, count) * kLog2E;
      native::store(&fades_[j], native::exp2_nonpositive(step * rates));
    }
  }

  void run_row(int64_t j, const T* x, const float* before, float* state, T* out) const {
    int64_t size = scan_.size;
    float step = steps_[j], d = scan_.d[first_ + j];
    const float* a = scan_.a + (first_ + j) * size;
    Lanes all = fill(fades_[j]), log2_step = fill(step * kLog2E);
    auto fade = [=](int64_t i) {
      if constexpr (!has_matrix) return all;
      return native::exp2_nonpositive(log2_step * native::load_some(a + i, size - i));
    };
    for (int64_t p = 0; p < scan_.head_dim; ++p) {
      float value = native::to_float(x[p]);
      float y = step_row(fade, step * value, b_, c_, before ? before + p * size : nullptr,
                         state + p * size, size);
      out[p] = native::from_float<T>(std::fma(d, value, y));
    }
  }

  const Scan& scan_;
  const int64_t first_, count_;
  std::vector<float> steps_, fades_, b_floats_, c_floats_;
  const float *b_ = nullptr, *c_ = nullptr;
};

template <class T, bool has_matrix>
void scan_all(const Scan& scan, const T* x, const T* dt, const T* b, const T* c, float* states,
              const int32_t* offsets, const int32_t* reads, const int32_t* writes, T* out,
              int64_t sequences) {
  int64_t most = std::max<int64_t>(1, kChannels / scan.head_dim);
  int64_t parts = (scan.heads + most - 1) / most, head_size = scan.head_dim * scan.size;
  int64_t elements = (offsets[sequences] + sequences) * scan.heads * head_size;
  int64_t threads = native::worth_threads(elements) ? native::num_threads() : 1;
  native::for_pieces(sequences * parts, threads, [&](int64_t piece) {
    int64_t sequence = piece / parts, head = piece % parts * most, first = offsets[sequence];
    if (first == offsets[sequence + 1]) return;
    auto held = [&](int64_t slot) { return states + (slot * scan.heads + head) * head_size; };
    Heads<T, has_matrix>(scan, head, std::min(most, scan.heads - head))
        .run(x + first * scan.x_stride, dt + first * scan.dt_stride, b + first * scan.b_stride,
             c + first * scan.c_stride,
             reads[sequence] < 0 ? nullptr : held(reads[sequence]), held(writes[sequence]),
             out + first * scan.heads * scan.head_dim, offsets[sequence + 1] - first);
  });
}

}  // namespace

extern "C" void tandem_selective_scan(int64_t dtype, const void* x, int64_t x_stride,
                                      const void* dt, int64_t dt_stride, const void* b,
                                      int64_t b_stride, const void* c, int64_t c_stride,
                                      const float* a, int64_t has_matrix, const float* d,
                                      const float* dt_bias, float least, float greatest,
                                      float* states, const int32_t* offsets,
                                      const int32_t* reads, const int32_t* writes, void* out,
                                      int64_t sequences, int64_t heads, int64_t head_dim,
                                      int64_t size, int64_t groups) {
  Scan scan{heads, head_dim, size, groups, x_stride, dt_stride, b_stride, c_stride,
            a, d, dt_bias, least, greatest};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto run = has_matrix ? scan_all<T, true> : scan_all<T, false>;
    run(scan, (const T*)x, (const T*)dt, (const T*)b, (const T*)c, states, offsets, reads, writes,
        (T*)out, sequences);
  });
}
