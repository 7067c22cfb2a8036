// Panels unpacked into bf16 numbers, which are multiplied like plain weights (`strips.h`).
#include "product.h"
#include "records.h"
#include "strips.h"

#if defined(TANDEM_BF16_PAIRS)
namespace native::panels {
namespace {

// Converts the lowest bits of each word to a number.
template <class R>
inline Vec low_bits(Words words) {
  constexpr int bits = R::bits;
  if constexpr (!is_integer(R::meaning)) return number_of<R::meaning, Vec>(words);
#if defined(__AVX512F__)
  if constexpr (bits == 4) {
    // A table lookup in one instruction, which ignores the other bits.
    const __m512 numbers =
        _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return (Vec)_mm512_permutexvar_ps((__m512i)words, numbers);
  }
#endif
  return __builtin_convertvector((I32x16)(words & ((1 << bits) - 1)), Vec);
}

// Converts byte i of each word to a number; 4-bit codes are in its lower half.
template <class R>
inline Vec byte_number(Words words, int i) {
#if defined(__AVX512VBMI__)
  if constexpr (R::bits > 4 && is_integer(R::meaning)) {
    // One permutation instead of a shift and a mask.
    const __m512i first = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60);
    const __m512i places = _mm512_add_epi32(first, _mm512_set1_epi32(i));
    constexpr __mmask64 kLowest = 0x1111111111111111;
    return (Vec)_mm512_cvtepi32_ps(
        _mm512_maskz_permutexvar_epi8(kLowest, places, (__m512i)words));
  }
#endif
  return low_bits<R>(words >> 8 * i);
}

// The numbers of one record.
template <class R>
class Unpacking {
 public:
  Unpacking(Block block, float offset) : record_(block.record) {
    for (int g = 0; g < R::groups; ++g) {
      scales_[g] = R::scale(block, g);
      mins_[g] = R::has_min ? R::min(block, g) : scales_[g] * -offset;
    }
  }

  // Quad q of a half: four inputs of all outputs. A code times its scale is exact, and so is an
  // offset's product: the sum is rounded once.
  void numbers(int half, int q, Vec (&inputs)[4]) const {
    int group = R::groups == 1 ? 0 : half;
    Words codes;
    if constexpr (R::bits == 4) {
      codes = load_words(R::nibbles(record_, q)) >> 4 * half;
    } else {
      U8x64 halves[2];
      R::codes(record_, q, halves[0], halves[1]);
      codes = (Words)halves[half];
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i)
      inputs[i] = multiply_add(byte_number<R>(codes, i), scales_[group], mins_[group]);
  }

#if defined(__AVX512BF16__)
  // The same in pairs.
  class Quad {
   public:
    Quad(const Unpacking& from, int half, int q) { from.numbers(half, q, inputs_); }
    __m512bh pair(int i) const { return strips::Pairs::weights(inputs_ + 2 * i); }

   private:
    Vec inputs_[4];
  };
#endif

 private:
  const uint8_t* record_;
  Vec scales_[R::groups], mins_[R::groups];
};

#if defined(__AVX512BF16__)
// The bf16 numbers of 4-bit floats, twice: a lookup takes 5 bits, of which the last may be another
// code's.
struct ShortNumbers {
  alignas(64) uint16_t bits[32] = {};

  constexpr ShortNumbers() {
    for (int i = 0; i < 32; ++i) bits[i] = __builtin_bit_cast(uint32_t, kE2m1[i % 16]) >> 16;
  }
};

// The numbers of a record of 4-bit floats whose scales are powers of two: these are added to the
// exponents of bf16 numbers, so nothing is rounded.
template <class R>
class ScaledByPower {
 public:
  // Whether all numbers but 0 have exponents that bf16 holds.
  static bool takes(Block block) {
    __m128i found = exponents(block), above = _mm_sub_epi8(found, _mm_set1_epi8(2));
    return _mm_movepi8_mask(_mm_or_si128(found, above)) == 0;  // 2 <= exponent <= 127
  }

  explicit ScaledByPower(Block block)
      : record_(block.record),
        less_(_mm512_mullo_epi32(
            _mm512_sub_epi32(_mm512_set1_epi32(127), _mm512_cvtepu8_epi32(exponents(block))),
            _mm512_set1_epi32(0x00800080))) {}

  // Four inputs in pairs.
  class Quad {
   public:
    Quad(const ScaledByPower& from, int half, int q)
        : codes_(_mm512_loadu_si512(R::nibbles(from.record_, q))), less_(from.less_), half_(half) {}

    __m512bh pair(int i) const {
      static constexpr ShortNumbers kNumbers;
      // Its bytes, each in 16 bits.
      const __m128i places =
          _mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1);
      const __m128i later = _mm_set1_epi16(short(2 * i));
      __m512i codes = _mm512_shuffle_epi8(
          codes_, _mm512_broadcast_i32x4(_mm_add_epi8(places, later)));
      codes = _mm512_srli_epi16(codes, 4 * half_);
      __mmask32 is_nonzero = _mm512_test_epi16_mask(codes, _mm512_set1_epi16(7));
      __m512i numbers = _mm512_permutexvar_epi16(codes, _mm512_load_si512(kNumbers.bits));
      return (__m512bh)_mm512_maskz_sub_epi16(is_nonzero, numbers, less_);
    }

   private:
    __m512i codes_, less_;
    int half_;
  };

  void store(int half, int q, BFloat16* to) const {
    Quad quad(*this, half, q);
    for (int i = 0; i < 2; ++i) _mm512_storeu_si512(to + 32 * i, (__m512i)quad.pair(i));
  }

 private:
  static __m128i exponents(Block block) { return _mm_loadu_si128((const __m128i*)block.record); }

  const uint8_t* record_;
  __m512i less_;  // what an output's numbers are reduced by, as bits
};

template <class R>
constexpr bool kScalesArePowers = std::is_same_v<typename R::Scale, PowerOfTwo>;
#endif

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)
// Writes numbers to memory: codes and scales are brought into the order of pairs before they are
// converted, which takes fewer permutations than pairs of numbers do. Register 0 has outputs 0 ..
// 7, two lanes each, for a pair's two inputs, register 1 the others.
template <class R>
class PairUnpacking {
 public:
  PairUnpacking(Block block, float offset) : record_(block.record) {
    for (int g = 0; g < R::groups; ++g) {
      Vec scale = R::scale(block, g), min = R::has_min ? R::min(block, g) : scale * -offset;
      for (int i = 0; i < 2; ++i) {
        scales_[g][i] = twice(scale, i);
        mins_[g][i] = twice(min, i);
      }
    }
  }

  // Quad q of a half, two pairs of inputs of all outputs.
  void store(int half, int q, BFloat16* to) const {
    int group = R::groups == 1 ? 0 : half;
    U8x64 codes;
    if constexpr (R::bits == 4) {
      std::memcpy(&codes, R::nibbles(record_, q), sizeof codes);
    } else {
      U8x64 halves[2];
      R::codes(record_, q, halves[0], halves[1]);
      codes = halves[half];
    }
    Vec numbers[4];
    in_order(std::make_integer_sequence<int, 64>{}, codes, half, numbers);
#pragma GCC unroll 2
    for (int pair = 0; pair < 2; ++pair) {
      __m512 parts[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
        parts[i] = (__m512)multiply_add(numbers[2 * pair + i], scales_[group][i], mins_[group][i]);
      _mm512_storeu_si512(to + 32 * pair, (__m512i)_mm512_cvtne2ps_pbh(parts[1], parts[0]));
    }
  }

 private:
  static Vec twice(Vec x, int part) {
    const __m512i lower = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    return (Vec)_mm512_permutexvar_ps(_mm512_add_epi32(lower, _mm512_set1_epi32(8 * part)),
                                      (__m512)x);
  }

  // The place of a lane's code in `codes`, [16 outputs][4 inputs], for `number` 2 * pair +
  // register.
  static constexpr char place(int lane, int number) {
    return char((lane / 2 + 8 * (number % 2)) * 4 + number / 2 * 2 + lane % 2);
  }

  template <int... at>
  static ALWAYS_INLINE void in_order(std::integer_sequence<int, at...>, U8x64 codes, int half,
                                     Vec (&numbers)[4]) {
    if constexpr (R::bits == 4) {
      // Byte i of a lane is that of number i.
      alignas(64) static constexpr char places[64] = {place(at / 4, at % 4)...};
      __m512i words = _mm512_permutexvar_epi8(_mm512_load_si512(places), (__m512i)codes);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        numbers[i] = low_bits<R>((Words)words >> (8 * i + 4 * half));
    } else {
      constexpr __mmask64 kLowest = 0x1111111111111111;
      alignas(64) static constexpr char places[4][64] = {
          {place(at / 4, 0)...}, {place(at / 4, 1)...}, {place(at / 4, 2)...}, {place(at / 4, 3)...}};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        __m512i alone = _mm512_maskz_permutexvar_epi8(kLowest, _mm512_load_si512(places[i]),
                                                      (__m512i)codes);
        if constexpr (is_integer(R::meaning))
          numbers[i] = (Vec)_mm512_cvtepi32_ps(alone);
        else
          numbers[i] = number_of<R::meaning, Vec>((Words)alone);
      }
    }
  }

  const uint8_t* record_;
  Vec scales_[R::groups][2], mins_[R::groups][2];
};
#else
template <class R>
class PairUnpacking : Unpacking<R> {
 public:
  using Unpacking<R>::Unpacking;

  void store(int half, int q, BFloat16* to) const {
    Vec inputs[4];
    this->numbers(half, q, inputs);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i += 2) strips::Pairs::store(to + 16 * i, inputs + i);
  }
};
#endif

// Strips that are unpacked from panels: a piece at a time, or in registers if there are few rows.
template <class R>
class Unpacked {
  using X = BFloat16;

 public:
  static constexpr bool kInBlocks = true;

  Unpacked(const uint8_t* panels, int64_t blocks, int64_t offset)
      : panels_(panels), blocks_(blocks), offset_(float(offset)) {}

  // Whole blocks, for the second-level cache.
  static int64_t piece_inputs(int64_t strips, bool) {
    return (128 << 10) / (strips * 16 * sizeof(X)) / kBlock * kBlock;
  }

  // Inputs 32 * block and following of some strips, [32 / 2, 16, 2] each, `stride` apart.
  void unpack_block(int64_t strip, int64_t strips, int64_t block, X* to,
                    int64_t stride = 16 * kBlock) const {
    for (int64_t s = 0; s < strips; ++s, to += stride) {
      Block here = at(strip + s, block);
      R::fetch_block(here + strips * R::panel_bytes(blocks_));
      unpack(here, to);
    }
  }

  strips::Piece<X> piece(int64_t strip, int64_t strips, int64_t first, int64_t last) const {
    int64_t stride = 16 * (last - first);
    X* data = native::strips::scratch<X>(strips * stride);
    X* to = data;
    for (int64_t b = first / kBlock; b < last / kBlock; ++b, to += 16 * kBlock)
      unpack_block(strip, strips, b, to, stride);
    return {data, stride, false};
  }

#if defined(__AVX512BF16__)
  bool multiply_few(const strips::Problem& p, int64_t row, int64_t rows, int64_t strip,
                    int64_t strips) const {
    if (rows > kFew) return false;
    if (strips == strips::kStrips)
      with_rows<kFew, strips::kStrips>(p, row, rows, strip);
    else
      for (int64_t s = 0; s < strips; ++s) with_rows<kFew, 1>(p, row, rows, strip + s);
    return true;
  }
#endif

 private:
  Block at(int64_t strip, int64_t block) const {
    return R::block(panels_ + strip * R::panel_bytes(blocks_), blocks_, block);
  }

  void unpack(Block block, X* to) const {
#if defined(__AVX512BF16__)
    if constexpr (kScalesArePowers<R>)
      if (ScaledByPower<R>::takes(block)) return store(ScaledByPower<R>(block), to);
#endif
    store(PairUnpacking<R>(block, offset_), to);
  }

  template <class Numbers>
  static void store(const Numbers& numbers, X* to) {
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
      for (int q = 0; q < kQuads / 2; ++q, to += kVector) numbers.store(half, q, to);
  }

#if defined(__AVX512BF16__)
  static constexpr int kFew = 4;

  template <int rows, int width>
  void with_rows(const strips::Problem& p, int64_t row, int64_t count, int64_t strip) const {
    if constexpr (rows > 1)
      if (count < rows) return with_rows<rows - 1, width>(p, row, count, strip);
    const X* x = (const X*)p.x + row * p.x_stride;
    Vec sums[rows][width] = {};
    for (int64_t b = 0; b < blocks_; ++b, x += kBlock)
      add_block(std::make_index_sequence<width>{}, at(strip, b), x, p.x_stride, sums);
    for (int r = 0; r < rows; ++r)
      for (int s = 0; s < width; ++s) strips::finish<X>(p, row + r, strip + s, sums[r][s]);
  }

  // One block of neighbouring strips, whose sums stay in registers.
  template <size_t... number, int rows, int width>
  void add_block(std::index_sequence<number...>, Block block, const X* x,
                 int64_t x_stride, Vec (&sums)[rows][width]) const {
    int64_t panel = R::panel_bytes(blocks_);
    if constexpr (kScalesArePowers<R>)
      if ((ScaledByPower<R>::takes(block + number * panel) && ...)) {
        const ScaledByPower<R> powers[] = {ScaledByPower<R>(block + number * panel)...};
        return add(powers, block + width * panel, x, x_stride, sums);
      }
    const Unpacking<R> unpacking[] = {{block + number * panel, offset_}...};
    add(unpacking, block + width * panel, x, x_stride, sums);
  }

  // The same with their numbers. `next` is the block of the strips behind them.
  template <class Numbers, int rows, int width>
  ALWAYS_INLINE void add(const Numbers (&numbers)[width], Block next, const X* x, int64_t x_stride,
                         Vec (&sums)[rows][width]) const {
    for (int s = 0; s < width; ++s) R::fetch_block(next + s * R::panel_bytes(blocks_));
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half)
#pragma GCC unroll 1
      for (int q = 0; q < kQuads / 2; ++q, x += 4)
#pragma GCC unroll 4
        for (int s = 0; s < width; ++s) {
          typename Numbers::Quad quad(numbers[s], half, q);
#pragma GCC unroll 2
          for (int i = 0; i < 2; ++i) {
            auto weights = quad.pair(i);
#pragma GCC unroll 4
            for (int r = 0; r < rows; ++r)
              sums[r][s] = strips::Pairs::add(sums[r][s], weights,
                                              strips::Pairs::row(x + r * x_stride + 2 * i));
          }
        }
  }
#endif

  const uint8_t* panels_;
  int64_t blocks_;
  float offset_;
};

}  // namespace

bool multiplies_pairs(Meaning of_codes) {
#if defined(TANDEM_MATRIX_TILES)
  if (has_matrix_tiles()) return true;
#endif
#if defined(__AVX512BF16__)
  static const bool is_intel = __builtin_cpu_is("intel");
  return !is_intel && !is_integer(of_codes);
#else
  return false;
#endif
}

void multiply_in_pairs(const Product& product) {
  const strips::Problem& p = product.problem;
  auto run = [&](auto* record) {
    using R = std::remove_pointer_t<decltype(record)>;
    strips::multiply_pairs(
        p, Unpacked<R>(product.panels, p.inputs / kBlock, product.format.offset));
  };
#if defined(TANDEM_MATRIX_TILES)
  with_record(product.format, run);
#else
  with_numbers(product.format, run);
#endif
}

}  // namespace native::panels
#endif
