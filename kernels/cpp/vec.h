// Sixteen numbers at a time. Compilers split a Vec on machines with shorter registers: loops that
// must be fast there use `Lanes`, which is the same with AVX-512.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <new>

#include "lanes.h"

namespace native {

typedef float Vec __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline Vec load(const BFloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, Words) << 16);
}

inline Vec load(const Float16* p) {
#if defined(__AVX512F__)
  // Compilers convert the vector below in pieces.
  __m256i halves;
  std::memcpy(&halves, p, sizeof halves);
  return (Vec)_mm512_cvtph_ps(halves);
#elif defined(__F16C__)
  __m256 parts[2];
  for (int i = 0; i < 2; ++i) parts[i] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p + i));
  Vec v;
  std::memcpy(&v, parts, sizeof v);
  return v;
#else
  typedef Float16 Halves __attribute__((vector_size(32)));
  Halves h;
  std::memcpy(&h, p, sizeof h);
  return __builtin_convertvector(h, Vec);
#endif
}

// Numbers of 8 bits.
template <class T>
inline Vec load(const T* p) {
  static_assert(sizeof(T) == 1);
  Lanes parts[16 / kLanes];
  for (int i = 0; i < 16 / kLanes; ++i) parts[i] = load_lanes(p + i * kLanes);
  Vec v;
  std::memcpy(&v, parts, sizeof v);
  return v;
}

// Sixteen 32-bit words: pairs of neighbouring bf16 numbers, for example.
inline Words load_words(const void* p) {
  Words w;
  std::memcpy(&w, p, sizeof w);
  return w;
}

#if !defined(__AVX512F__)
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
#endif
inline void store(BFloat16* p, Vec v) {
  // Like `from_float`, in vectors. NaNs are found by the sign of a difference: to compare them
  // compilers take the numbers out of shorter registers one by one.
  typedef uint16_t Halves __attribute__((vector_size(32)));
  typedef int32_t Signed __attribute__((vector_size(64)));
  Words bits = (Words)v;
  Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  Words is_nan = (Words)((Signed)(0x7f800000 - (bits & 0x7fffffff)) >> 31);
  Words chosen = (is_nan & ((bits >> 16) | 0x40)) | (~is_nan & rounded);
  Halves halves = __builtin_convertvector(chosen, Halves);
  std::memcpy(p, &halves, sizeof halves);
}
inline void store(Float16* p, Vec v) {
#if defined(__AVX512F__)
  __m256i halves = _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  std::memcpy(p, &halves, sizeof halves);
#elif defined(__F16C__)
  __m256 parts[2];
  std::memcpy(parts, &v, sizeof v);
  for (int i = 0; i < 2; ++i)
    _mm_storeu_si128((__m128i*)p + i, _mm256_cvtps_ph(parts[i], _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < 16; ++i) p[i] = Float16(v[i]);
#endif
}

#if !defined(__AVX512F__)
inline Vec multiply_add(Vec a, Vec b, Vec c) {
  Lanes parts[3][16 / kLanes];
  std::memcpy(parts[0], &a, sizeof a);
  std::memcpy(parts[1], &b, sizeof b);
  std::memcpy(parts[2], &c, sizeof c);
  for (int i = 0; i < 16 / kLanes; ++i)
    parts[2][i] = multiply_add(parts[0][i], parts[1][i], parts[2][i]);
  std::memcpy(&c, parts[2], sizeof c);
  return c;
}
#endif

inline Vec broadcast(float x) { return x - Vec{}; }

// Prefetches `bytes` bytes into the second-level cache.
template <int bytes>
inline void fetch(const void* p) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch((const char*)p + at, 0, 2);
}

// std::vector's own allocator supports only the alignments of new; this one works with every
// compiler.
template <class T>
struct AlignedAllocator {
  using value_type = T;
  AlignedAllocator() = default;
  template <class U>
  AlignedAllocator(const AlignedAllocator<U>&) {}
  T* allocate(std::size_t count) {
    void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
    if (!memory) throw std::bad_alloc();
    return static_cast<T*>(memory);
  }
  void deallocate(T* memory, std::size_t) { std::free(memory); }
  template <class U>
  bool operator==(const AlignedAllocator<U>&) const { return true; }
  template <class U>
  bool operator!=(const AlignedAllocator<U>&) const { return false; }
};

}  // namespace native
