// Rotary embedding of packed heads, in place.
#include "native.h"

extern "C" void tandem_rope_inplace(int64_t dtype, void* x, int64_t token_stride, int64_t head_stride,
                                    const float* cos, const float* sin, int64_t tokens,
                                    int64_t heads, int64_t dim) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    int64_t half = dim / 2;
#pragma omp parallel for if (native::worth_threads(tokens * heads * dim))
    for (int64_t token = 0; token < tokens; ++token) {
      const float* c = cos + token * dim;
      const float* s = sin + token * dim;  // its first half is negated
      for (int64_t head = 0; head < heads; ++head) {
        T* low = (T*)x + token * token_stride + head * head_stride;
        T* high = low + half;
#pragma omp simd
        for (int64_t i = 0; i < half; ++i) {
          float a = native::to_float(low[i]), b = native::to_float(high[i]);
          low[i] = native::from_float<T>(a * c[i] + b * s[i]);
          high[i] = native::from_float<T>(b * c[half + i] + a * s[half + i]);
        }
      }
    }
  });
}
