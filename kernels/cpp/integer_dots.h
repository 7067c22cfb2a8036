// Dot products of integers, which are exact and so the same on every machine.
#pragma once
#include "products.h"

namespace native {

// sum[o] += the pair of 16-bit numbers in w[o] . that in x[o].
ALWAYS_INLINE IntLanes dot_pairs(IntLanes sum, IntLanes w, IntLanes x) {
#if defined(__AVX512VNNI__)
  return (IntLanes)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVX512BW__)
  return sum + (IntLanes)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
  return (IntLanes)_mm256_dpwssd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#elif defined(__AVX2__)
  return sum + (IntLanes)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
  return sum + (w << 16 >> 16) * (x << 16 >> 16) + (w >> 16) * (x >> 16);
#endif
}

// sum[o] += the four unsigned bytes in w[o] . the four signed ones in x[o].
ALWAYS_INLINE IntLanes dot_quads(IntLanes sum, IntLanes w, IntLanes x) {
#if defined(__AVX512VNNI__)
  return (IntLanes)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)w, (__m512i)x);
#elif defined(__AVXVNNI__)
  return (IntLanes)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)w, (__m256i)x);
#else
  for (int i = 0; i < 4; ++i) sum += ((w >> 8 * i) & 255) * (x << (24 - 8 * i) >> 24);
  return sum;
#endif
}

// The same with one x for all lanes.
ALWAYS_INLINE IntLanes dot_pairs(IntLanes sum, IntLanes w, int32_t x) {
  return dot_pairs(sum, w, repeat_word(x));
}
ALWAYS_INLINE IntLanes dot_quads(IntLanes sum, IntLanes w, int32_t x) {
  return dot_quads(sum, w, repeat_word(x));
}

}  // namespace native
