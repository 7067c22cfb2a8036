// Normalises and rotates a token's query and key heads, and stores its keys and values in the paged
// cache, unchanged or quantised head by head.
#include "pieces.h"

#include <algorithm>

namespace {

constexpr int64_t kMaxDim = 1024;  // kernels/rope_store_kv/cpu.py refuses more.

// As passed by kernels/rope_store_kv/cpu.py.
enum CacheFormat : int { kSame = 0, kInt8 = 1, kFloat8 = 2 };

template <class T>
struct Heads {
  T* data;
  int64_t token_stride, head_stride, num_q;
  int64_t parts;  // 2 for keys and values, 1 for keys alone.
  int64_t num_kv, dim;
  int64_t rotary;
  float eps;
  bool fp32_norms;
  const void *q_norm, *k_norm;
};

struct Cache {
  void* data;
  int64_t block_stride;
  float* scales;
  int64_t scales_block_stride, block_size;
  int format;
};

template <class W>
void norm(float* y, const W* weight, int64_t dim, float eps) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < dim; ++i) sum += y[i] * y[i];
  float scale = 1.0f / std::sqrt(sum / float(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) y[i] *= scale * native::to_float(weight[i]);
}

void rotate(float* y, const float* cos_sin, int64_t rotary) {
  int64_t half = rotary / 2;
  const float *cos = cos_sin, *sin = cos_sin + half;
  float* z = y + half;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    float a = y[i], b = z[i];
    y[i] = a * cos[i] - b * sin[i];
    z[i] = b * cos[i] + a * sin[i];
  }
}

// The head at `x` in fp32, normalised and rotated.
template <class T>
void prepare(const Heads<T>& heads, const T* x, const void* weight, const float* cos_sin,
             float* y) {
  for (int64_t i = 0; i < heads.dim; ++i) y[i] = native::to_float(x[i]);
  if (weight && heads.fp32_norms) norm(y, (const float*)weight, heads.dim, heads.eps);
  if (weight && !heads.fp32_norms) norm(y, (const T*)weight, heads.dim, heads.eps);
  rotate(y, cos_sin, heads.rotary);
}

template <class T>
void round_to(const float* y, T* out, int64_t dim) {
  for (int64_t i = 0; i < dim; ++i) out[i] = native::from_float<T>(y[i]);
}

// The nearest number of 4 exponent and 3 mantissa bits, ties to even; |x| is at most 448.
inline uint8_t to_e4m3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  uint32_t magnitude = bits & 0x7fffffff;
  uint32_t normal = ((magnitude + 0x7ffff + ((magnitude >> 20) & 1)) >> 20) - (120 << 3);
  // Below 2^-6 the steps are 2^-9: adding 2^14 leaves the steps' number in the lowest bits.
  float shifted = std::fabs(x) + 16384.0f;
  uint32_t steps;
  std::memcpy(&steps, &shifted, 4);
  uint32_t code = magnitude < 0x3c800000 ? steps & 0xff : normal;
  return uint8_t(code | (bits >> 31 << 7));
}

float scale_of(const float* y, int64_t dim, float largest) {
  float most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < dim; ++i) most = std::max(most, std::fabs(y[i]));
  return most / largest;
}

void quantize(const float* y, void* out, float* scale, int64_t dim, int format) {
  float largest = format == kInt8 ? 127.0f : 448.0f;
  *scale = scale_of(y, dim, largest);
  if (!(*scale > 0)) {
    std::memset(out, 0, dim);
    return;
  }
  for (int64_t i = 0; i < dim; ++i) {
    float scaled = std::min(std::max(y[i] / *scale, -largest), largest);
    if (format == kInt8)
      ((int8_t*)out)[i] = int8_t(std::nearbyint(scaled));
    else
      ((uint8_t*)out)[i] = to_e4m3(scaled);
  }
}

// `y` is the head in fp32. `row` is the index in the block's keys and values: (kv, head, slot).
template <class T>
void store(const Cache& cache, const float* y, int64_t block, int64_t row, int64_t dim) {
  int64_t at = block * cache.block_stride + row * dim;
  if (cache.format == kSame) return round_to(y, (T*)cache.data + at, dim);
  float* scale = cache.scales + block * cache.scales_block_stride + row;
  quantize(y, (char*)cache.data + at, scale, dim, cache.format);
}

template <class T>
void run_token(const Heads<T>& heads, const Cache& cache, int64_t token, const float* cos_sin,
               int64_t block, int64_t slot) {
  float y[kMaxDim];
  T* x = heads.data + token * heads.token_stride;
  for (int64_t head = 0; head < heads.num_q; ++head, x += heads.head_stride) {
    prepare(heads, x, heads.q_norm, cos_sin, y);
    round_to(y, x, heads.dim);
  }
  for (int64_t head = 0; head < heads.num_kv; ++head, x += heads.head_stride) {
    prepare(heads, x, heads.k_norm, cos_sin, y);
    store<T>(cache, y, block, head * cache.block_size + slot, heads.dim);
  }
  for (int64_t head = heads.num_kv; head < heads.parts * heads.num_kv; ++head, x += heads.head_stride) {
    int64_t row = head * cache.block_size + slot;
    if (cache.format == kSame) {
      T* to = (T*)cache.data + block * cache.block_stride + row * heads.dim;
      std::memcpy(to, x, heads.dim * sizeof(T));
      continue;
    }
    for (int64_t i = 0; i < heads.dim; ++i) y[i] = native::to_float(x[i]);
    store<T>(cache, y, block, row, heads.dim);
  }
}

}  // namespace

extern "C" void tandem_rope_store_kv(
    int64_t dtype, void* data, int64_t token_stride, int64_t head_stride, int64_t tokens,
    int64_t num_q, int64_t parts, int64_t num_kv, int64_t dim, const int64_t* positions,
    const float* cos_sin, int64_t rotary, const void* q_norm, const void* k_norm, int64_t norm_dtype, float eps,
    void* cache_data, int64_t format, int64_t block_stride, float* scales,
    int64_t scales_block_stride, int64_t block_size, const int64_t* blocks,
    const int64_t* slots) {
  Cache cache{cache_data, block_stride, scales, scales_block_stride, block_size, int(format)};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    Heads<T> heads{(T*)data, token_stride, head_stride, num_q, parts, num_kv, dim, rotary,
                   eps,      norm_dtype == native::kFloat32, q_norm, k_norm};
    int64_t elements = tokens * (num_q + parts * num_kv) * dim;
    native::for_ranges(tokens, elements, [&](int64_t first, int64_t last) {
      for (int64_t token = first; token < last; ++token)
        run_token(heads, cache, token, cos_sin + positions[token] * rotary, blocks[token],
                  slots[token]);
    });
  });
}
