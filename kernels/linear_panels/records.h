// Panels of block-quantised weights: for each 16 outputs one record per 32 inputs (`panels.py`
// describes the layout).
#pragma once
#include "int8.h"
#include "product.h"

namespace native::panels {

constexpr int kVector = 64;  // bytes: four inputs of 16 outputs

// Groups of a block.
constexpr int groups_of(int64_t group) { return int(kBlock / group); }

// The numbers of GGUF's IQ4 types plus 128.
constexpr uint8_t kTable[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                129, 141, 153, 166, 181, 197, 217, 241};

// The numbers of 4-bit types, as in kernels/shared/four_bit_numbers.py.
alignas(64) constexpr float kNf4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f};
alignas(64) constexpr float kFp4[16] = {
    0.0f, 0.0052083334885537624f, 0.6666666865348816f, 1.0f, 0.3333333432674408f, 0.5f,
    0.1666666716337204f, 0.25f, 0.0f, -0.0052083334885537624f, -0.6666666865348816f, -1.0f,
    -0.3333333432674408f, -0.5f, -0.1666666716337204f, -0.25f};
alignas(64) constexpr float kE2m1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                         -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
template <Meaning meaning>
constexpr const float* numbers_of() {
  if constexpr (meaning == Meaning::kE2m1) return kE2m1;
  return meaning == Meaning::kNf4 ? kNf4 : kFp4;
}

// Converts the lowest bits of each word, a code that is not an integer, to its number; other bits
// are ignored. `Numbers` and `Integers` have the size of a register, or of a register with AVX-512.
template <Meaning meaning, class Numbers, class Integers>
ALWAYS_INLINE Numbers number_of(Integers codes) {
  if constexpr (meaning == Meaning::kFp8) {
    // float8_e4m3fn: exponent and mantissa are in their places, but the exponent has its old bias.
    Integers bits = (codes & 0x80) << 24 | (codes & 0x7f) << 20;
    return (Numbers)bits * 0x1p120f;
  } else {
    const float* table = numbers_of<meaning>();
#if defined(__AVX512F__)
    if constexpr (sizeof codes == 64)
      return (Numbers)_mm512_permutexvar_ps((__m512i)codes, _mm512_load_ps(table));
#elif defined(__AVX2__)
    const __m256 low = _mm256_load_ps(table), high = _mm256_load_ps(table + 8);
    __m256i parts[sizeof codes / 32];
    std::memcpy(parts, &codes, sizeof codes);
    for (__m256i& part : parts)
      // The code's uppermost bit, as a sign, selects the half.
      part = (__m256i)_mm256_blendv_ps(_mm256_permutevar8x32_ps(low, part),
                                       _mm256_permutevar8x32_ps(high, part),
                                       (__m256)_mm256_slli_epi32(part, 28));
    Numbers found;
    std::memcpy(&found, parts, sizeof found);
    return found;
#endif
    Numbers numbers;
    for (size_t i = 0; i < sizeof codes / 4; ++i) numbers[i] = table[codes[i] & 15];
    return numbers;
  }
}

// Looks up places in the table, one per byte.
template <class Bytes>
ALWAYS_INLINE Bytes looked_up(Bytes places) {
#if defined(__AVX2__)
  const __m128i table = _mm_loadu_si128((const __m128i*)kTable);
#if defined(__AVX512BW__)
  if constexpr (sizeof places == 64)
    return (Bytes)_mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), (__m512i)places);
#endif
  __m256i parts[sizeof places / 32];
  std::memcpy(parts, &places, sizeof places);
  for (__m256i& part : parts)
    part = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), part);
  std::memcpy(&places, parts, sizeof places);
#else
  uint8_t bytes[sizeof places];
  std::memcpy(bytes, &places, sizeof places);
  for (uint8_t& byte : bytes) byte = kTable[byte];
  std::memcpy(&places, bytes, sizeof places);
#endif
  return places;
}

// A block of a panel: its record, and the factors of its scales, if there are any. Adding the bytes of
// a panel gives the same block of the next one.
struct Block {
  const uint8_t *record, *factors;

  Block operator+(int64_t bytes) const { return {record + bytes, factors + bytes}; }
};

// Where panels are read in the order of memory: bytes from what is read to what is fetched. Behind the
// last panel it may be anybody's memory, which does no harm.
constexpr int64_t kAheadInOrder = 6 << 10;

// A panel's data for one block: scales, minima, then codes, or 4-bit places of 8-bit codes.
template <int kBits, int kGroup, class S, bool kHasMin, Meaning kMeaning = Meaning::kIntegers>
struct Record {
  static constexpr Meaning meaning = kMeaning;
  static constexpr bool kLooksUp = kMeaning == Meaning::kIq4;
  static constexpr int bits = kBits, stored_bits = kLooksUp ? 4 : kBits;
  static constexpr int groups = groups_of(kGroup);
  static constexpr bool has_min = kHasMin;
  using Scale = S;
  static constexpr int scale_bytes = groups * kOutputs * sizeof(Scale);
  static constexpr int codes_at = scale_bytes * (has_min ? 2 : 1);
  static constexpr int bytes = codes_at + kBlock * kOutputs * stored_bits / 8;
  // Several blocks share factors, which lie before the records of their panel.
  static constexpr bool has_factors = std::is_same_v<Scale, int8_t>;
  static constexpr int factor_bytes = has_factors ? kOutputs * 2 * (has_min ? 2 : 1) : 0;
  static constexpr int64_t kBlocksOfFactors = 8;

  static constexpr int64_t records_at(int64_t blocks) {
    return blocks / kBlocksOfFactors * factor_bytes;
  }
  static constexpr int64_t panel_bytes(int64_t blocks) {
    return records_at(blocks) + blocks * bytes;
  }
  static Block block(const uint8_t* panel, int64_t blocks, int64_t number) {
    return {panel + records_at(blocks) + number * bytes,
            panel + number / kBlocksOfFactors * factor_bytes};
  }
  // Fetches a block that is needed soon.
  static ALWAYS_INLINE void fetch_block(Block block) {
    fetch<bytes>(block.record);
    if (has_factors) fetch<factor_bytes>(block.factors);
  }

  static Vec scale(Block block, int group) { return scale_or_min<0>(block, group); }
  static Vec min(Block block, int group) { return scale_or_min<1>(block, group); }
  // The same for outputs `part * kLanes` and following.
  static Lanes scales(Block block, int group, int part) { return in_lanes<0>(block, group, part); }
  static Lanes mins(Block block, int group, int part) { return in_lanes<1>(block, group, part); }
  // The place of the low four bits of quads q (in low halves of bytes) and q + 4 (in high ones).
  static const uint8_t* nibbles(const uint8_t* record, int q) {
    return record + codes_at + q * kVector;
  }
  // Inputs 4q..4q+3 (low) and 16+4q..16+4q+3 (high) of all outputs.
  static void codes(const uint8_t* record, int q, U8x64& low, U8x64& high) {
    const uint8_t* at = record + codes_at;
    if (stored_bits == 8) {
      low = load_codes(at + q * kVector);
      high = load_codes(at + (q + kQuads / 2) * kVector);
      return;
    }
    U8x64 both = load_codes(at + q * kVector);
    low = both & 15;
    high = both >> 4;
    if (kLooksUp) {
      low = looked_up(low);
      high = looked_up(high);
    } else if (bits > 4) {
      low |= (U8x64)in_place(load_words(upper_bits(record, q)), q);
      high |= (U8x64)in_place(load_words(upper_bits(record, q + kQuads / 2)), q + kQuads / 2);
    }
  }
  // The same for outputs `part * kLanes` and following of one quad: byte i of a word is input i's.
  // With 4 bits it holds the other half's code, too.
  static ALWAYS_INLINE IntLanes words(const uint8_t* record, int half, int q, int part) {
    int quad = q + half * kQuads / 2;
    auto from = [part](const uint8_t* at) { return load_ints(at + part * 4 * kLanes); };
    if (stored_bits == 8) return from(record + codes_at + quad * kVector);
    IntLanes both = from(nibbles(record, q));
    if (bits == 4) return both;
    IntLanes low = (half ? both >> 4 : both) & 0x0f0f0f0f;
    if (kLooksUp) return looked_up(low);
    return low | in_place(from(upper_bits(record, quad)), quad);
  }

 private:
  // Scales, or minima if `which` is 1. Products with factors are exact.
  template <int which>
  static ALWAYS_INLINE Vec scale_or_min(Block block, int group) {
    Vec numbers = load((const Scale*)(block.record + which * scale_bytes) + group * kOutputs);
    if constexpr (has_factors) numbers *= load((const Float16*)block.factors + which * kOutputs);
    return numbers;
  }
  template <int which>
  static ALWAYS_INLINE Lanes in_lanes(Block block, int group, int part) {
    int at = part * kLanes;
    Lanes lanes =
        load_lanes((const Scale*)(block.record + which * scale_bytes) + group * kOutputs + at);
    if constexpr (has_factors)
      lanes *= load_lanes((const Float16*)block.factors + which * kOutputs + at);
    return lanes;
  }

  static constexpr int upper = bits - 4, quads_per_byte = bits > 4 ? 8 / (bits - 4) : 1;

  static const uint8_t* upper_bits(const uint8_t* record, int quad) {
    return record + codes_at + (kQuads / 2 + quad / quads_per_byte) * kVector;
  }
  // A quad's upper bits, at their places in each byte.
  template <class Integers>
  static Integers in_place(Integers packed, int quad) {
    int place = quad % quads_per_byte * upper;
    return (place < 4 ? packed << (4 - place) : packed >> (place - 4)) &
           int32_t(((1u << upper) - 1) * 0x10101010u);
  }
};

// Calls `function` with each quad of a half, as a constant where upper bits must be found in their
// bytes. Elsewhere the loop need not be unrolled: with many `rows` in `function` that gains
// nothing, and compilers take long over it, longer where `Lanes` are two registers.
template <class R, int rows, class Function>
ALWAYS_INLINE void for_quads(Function function) {
#if defined(__aarch64__)
  constexpr int kMany = 2;
#else
  constexpr int kMany = 4;
#endif
  if constexpr (R::bits == 5 || R::bits == 6 || rows < kMany) {
#pragma GCC unroll 4
    for (int q = 0; q < kQuads / 2; ++q) function(q);
  } else {
#pragma GCC unroll 1
    for (int q = 0; q < kQuads / 2; ++q) function(q);
  }
}

// The formats that `panels.py` makes: those of GGUF files and others that are rounded like them,
template <class Function>
void with_gguf_record(const Format& format, Function run) {
  int64_t bits = format.bits;
  bool half = format.scale_dtype == kFloat16;
  if (format.meaning == Meaning::kIq4) {
    if (half) return run((Record<8, 32, Float16, false, Meaning::kIq4>*)nullptr);
    return run((Record<8, 32, int8_t, false, Meaning::kIq4>*)nullptr);
  }
  if (format.group == 32 && half && !format.has_min) {
    if (bits == 4) return run((Record<4, 32, Float16, false>*)nullptr);
    if (bits == 5) return run((Record<5, 32, Float16, false>*)nullptr);
    return run((Record<8, 32, Float16, false>*)nullptr);
  }
  if (format.group == 32 && half) {
    if (bits == 4) return run((Record<4, 32, Float16, true>*)nullptr);
    return run((Record<5, 32, Float16, true>*)nullptr);
  }
  if (format.scale_dtype == kFloat32) return run((Record<4, 32, float, true>*)nullptr);
  if (format.group == 32) {
    if (bits == 4) return run((Record<4, 32, int8_t, true>*)nullptr);
    return run((Record<5, 32, int8_t, true>*)nullptr);
  }
  if (bits == 6) return run((Record<6, 16, int8_t, false>*)nullptr);
  if (format.has_min) return run((Record<4, 16, int8_t, true>*)nullptr);
  return run((Record<4, 16, int8_t, false>*)nullptr);
}

// those whose codes are integers,
template <class Function>
void with_integers(const Format& format, Function run) {
  if (format.bits == 8 && format.meaning == Meaning::kIntegers && format.scale_dtype == kFloat32) {
    if (format.has_min) return run((Record<8, 32, float, true>*)nullptr);
    return run((Record<8, 32, float, false>*)nullptr);
  }
  with_gguf_record(format, run);
}

// those whose codes are other numbers,
template <class Function>
void with_numbers(const Format& format, Function run) {
  switch (format.meaning) {
    case Meaning::kNf4: return run((Record<4, 32, float, false, Meaning::kNf4>*)nullptr);
    case Meaning::kFp4: return run((Record<4, 32, float, false, Meaning::kFp4>*)nullptr);
    case Meaning::kE2m1:
      if (format.group == 16) return run((Record<4, 16, float, false, Meaning::kE2m1>*)nullptr);
      return run((Record<4, 32, PowerOfTwo, false, Meaning::kE2m1>*)nullptr);
    default: return run((Record<8, 32, float, false, Meaning::kFp8>*)nullptr);
  }
}

// and all.
template <class Function>
void with_record(const Format& format, Function run) {
  if (is_integer(format.meaning)) return with_integers(format, run);
  with_numbers(format, run);
}

}  // namespace native::panels
