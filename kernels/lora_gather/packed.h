// Adapters in 8 bits (`kernels/lora_gather/packed.py`), multiplied by integers: half as many bytes
// come from memory as in bf16, and each register of them takes two instructions.
//
// A row's numbers become 16-bit integers in groups of 64, and so do A's results for it. Sums of a
// group, or of a chunk of 8 ranks, are exact; in fp32 they are added in the order of groups and
// chunks, in the same way on every machine. Bytes are unsigned, 128 too large, which the integers'
// sum corrects.
#pragma once
#include "halves.h"
#include "int16_numbers.h"
#include "integer_dots.h"
#include "strip_problem.h"
#include "tiles.h"

namespace native::lora {

// Registers for sixteen sums or factors.
constexpr int kParts = 16 / kLanes;
constexpr int64_t kOctet = 8, kLine = 64;

// Eight integers to multiply by a line of bytes: upper digits and lower ones or, where there is no
// suitable product of bytes, those at even places and at odd ones.
struct Octet {
#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
  static constexpr bool kDigits = true;
#else
  static constexpr bool kDigits = false;
#endif
  int8_t bytes[2][8];

  // Stores a register of integers, which makes kLanes / kOctet octets.
  static ALWAYS_INLINE void store(IntLanes integers, Octet* to) {
    Shorts x = lowest_shorts(integers);
    if constexpr (kDigits) x = ((x + int16_t(128)) & int16_t(-256)) | (x & int16_t(255));
    x = apart(x);
    std::memcpy(to, &x, sizeof x);
  }

  // All eight in turn, or four of them in each lane.
  ALWAYS_INLINE IntLanes all(int which) const { return repeat_two(bytes[which]); }
  ALWAYS_INLINE IntLanes four(int which, int64_t first) const {
    int32_t four;
    std::memcpy(&four, bytes[which] + first, sizeof four);
    return repeat_word(four);
  }

 private:
  // Returns the second bytes of each eight integers, then the first ones; or the integers at even
  // places and then those at odd ones.
  static ALWAYS_INLINE Shorts apart(Shorts x) {
    typedef int8_t All __attribute__((vector_size(sizeof x)));
    All all = (All)x;
#if defined(__AVX512F__)
    if constexpr (kDigits)
      return (Shorts)__builtin_shufflevector(all, all, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10,
                                             12, 14, 17, 19, 21, 23, 25, 27, 29, 31, 16, 18, 20, 22,
                                             24, 26, 28, 30);
    return __builtin_shufflevector(x, x, 0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15);
#else
    if constexpr (kDigits)
      return (Shorts)__builtin_shufflevector(all, all, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10,
                                             12, 14);
    return __builtin_shufflevector(x, x, 0, 2, 4, 6, 1, 3, 5, 7);
#endif
  }
};

// The sums of one register of products.
struct Dots {
  IntLanes first{}, second{};

  ALWAYS_INLINE void add(IntLanes bytes, IntLanes given_first, IntLanes given_second) {
    if constexpr (Octet::kDigits) {
      first = dot_quads(first, bytes, given_first);
      second = dot_quads(second, bytes, given_second);
    } else {
      first = dot_pairs(first, bytes & 0x00ff00ff, given_first);
      second = dot_pairs(second, (bytes >> 8) & 0x00ff00ff, given_second);
    }
  }
  ALWAYS_INLINE Lanes sum() const {
    IntLanes all = Octet::kDigits ? (first << 8) + second : first + second;
    return __builtin_convertvector(all, Lanes);
  }
};

template <class T>
struct Packed {
  static constexpr int kRanks = 8;  // ranks of a chunk, the unit of all loops over ranks
  static constexpr int kTogether = 1;
  static constexpr int kFewRows = 2;  // with more, products take so long that prefetching is not needed
  static constexpr int64_t kGroup = 64, kUnit = kGroup;
  static constexpr int kOctets = kGroup / kOctet;

  // Numbers of a row in the form to multiply by A, and the correction for bytes that are too large
  // by kMiddle: for the first four of each octet and for the others.
  static constexpr int32_t kMiddle = 128;
  struct Given {
    Octet octets[kOctets];
    int32_t offsets[2];
    float scale;
  };
  // Bytes of a chunk: steps up to a line's end, then numbers up to a multiple of sixteen.
  static int64_t stride(int64_t size) { return steps_end(size) + (size + 15) / 16 * 16 * kRanks; }
  static int64_t steps_end(int64_t size) {
    int64_t steps = (size + kGroup - 1) / kGroup * kRanks * int64_t(sizeof(BFloat16));
    return (steps + kLine - 1) / kLine * kLine;
  }
  static Ranks ranks(const char* adapter, int64_t chunks, int64_t size, int64_t first) {
    int64_t steps = steps_end(size);
    return {adapter + steps + first * kRanks, stride(size), chunks,
            first / kOctet * int64_t(sizeof(BFloat16)) - steps - first * kRanks};
  }

  static int64_t given_size(int64_t size) { return (size + kGroup - 1) / kGroup; }
  static const Given* given(const T* row, int64_t size, Given* copy) {
    for (int64_t i = 0; i < size; i += kGroup) {
      T cut[kGroup];
      const T* from = row + i;
      if (size - i < kGroup) {
        std::fill_n(cut, kGroup, T{});
        std::memcpy(cut, from, (size - i) * sizeof(T));
        from = cut;
      }
      Lanes numbers[kGroup / kLanes], most{};
      for (int r = 0; r < kGroup / kLanes; ++r) {
        numbers[r] = load_lanes(from + r * kLanes);
        most = Int16Scale::larger_magnitude(most, numbers[r]);
      }
      Int16Scale scale(most);
      Given& to = copy[i / kGroup];
      IntLanes sums{};
      for (int r = 0; r < kGroup / kLanes; ++r) {
        IntLanes integers = scale.integers(numbers[r]);
        Octet::store(integers, to.octets + r * kLanes / kOctet);
        sums += integers;
      }
      IntLanes offsets = sum_of_fours(sums) * -kMiddle;
      for (int half = 0; half < 2; ++half) to.offsets[half] = offsets[4 * half];
      to.scale = scale.scale[0];
    }
    return copy;
  }

  // inner[m] = a · x for chunks first .. last - 1.
  template <int rows>
  static void shrink(const Given* const* numbers, int64_t size, const Ranks& all, int64_t first,
                     int64_t last, float* inner, const Ranks& then) {
    for (int64_t chunk = first; chunk < last; ++chunk)
      shrink_chunk<rows>(numbers, size, all, chunk, inner, then);
  }

  // y[m] += scale · inner[m] · b for `count` outputs.
  template <int rows>
  static void expand(const Ranks& all, const float* inner, int64_t count, float scale, T* const* y,
                     const Ranks& then) {
    auto* factors = (Factor*)strips::scratch<Rounded>(rows * all.count);
    float scales[rows];
    for (int m = 0; m < rows; ++m)
      scales[m] = scale * round(inner + m * all.count * kRanks, all.count, factors + m * all.count);
    Ahead ahead(then, (count + kPair - 1) / kPair);
    int64_t i = 0;
    for (; i + kPair <= count; i += kPair) expand_at<rows, 2>(all, factors, i, scales, y, i, ahead);
    if (i == count) return;
    T cut[rows][kPair] = {};
    T* to[rows];
    for (int m = 0; m < rows; ++m) {
      std::memcpy(cut[m], y[m] + i, (count - i) * sizeof(T));
      to[m] = cut[m];
    }
    if (count - i > kLanes) expand_at<rows, 2>(all, factors, i, scales, to, 0, ahead);
    else expand_at<rows, 1>(all, factors, i, scales, to, 0, ahead);
    for (int m = 0; m < rows; ++m) std::memcpy(y[m] + i, cut[m], (count - i) * sizeof(T));
  }

 private:
  static constexpr int64_t kPair = 2 * kLanes;  // outputs of two registers
  // A chunk of the data that is read next, in as many parts as the present chunk has.
  class Ahead {
   public:
    Ahead(const Ranks& then, int64_t parts)
        : then_(then), lines_((then.stride / kLine + parts - 1) / parts) {}

    ALWAYS_INLINE void fetch(int64_t chunk, int64_t part) const {
      const char* from = then_.at(std::min(chunk, then_.count - 1)) + then_.steps;
      for (int64_t line = part * lines_; line < (part + 1) * lines_; ++line)
        native::fetch<kLine>(from + line * kLine);
    }

   private:
    const Ranks& then_;
    const int64_t lines_;
  };

  // The result of a chunk of A for a row, in the form to multiply by B.
  struct Factor {
    Octet octet;
    int32_t offset;
  };
  struct Rounded {
    Factor x;
  };

  // Rounds all chunks of a row; returns their common scale.
  static ALWAYS_INLINE float round(const float* inner, int64_t chunks, Factor* to) {
    Lanes most{};
    for (int64_t c = 0; c < chunks; ++c)
      most = Int16Scale::larger_magnitude(most, load_some(inner + c * kRanks, kRanks));
    Int16Scale scale(most);
    for (int64_t c = 0; c < chunks; ++c) {
      IntLanes integers = scale.integers(load_some(inner + c * kRanks, kRanks));
      Octet octets[kLanes / kOctet];
      Octet::store(integers, octets);
      IntLanes sums = sum_of_fours(integers);
      to[c] = {octets[0], -kMiddle * (sums[0] + sums[4])};
    }
    return scale.scale[0];
  }

  // Computes outputs from `i` on of B, from `at` on of y; rounded once.
  template <int rows, int registers>
  static ALWAYS_INLINE void expand_at(const Ranks& all, const Factor* factors, int64_t i,
                                      const float* scales, T* const* y, int64_t at,
                                      const Ahead& ahead) {
    Lanes sums[rows][2] = {};
    each<registers>([&](auto r) INLINE_BODY {
      constexpr int block = r / kParts, part = r % kParts;
      for (int64_t c = 0; c < all.count; ++c) {
        const char* bytes = all.at(c);
        const char* lines = bytes + i * kRanks + 2 * block * kLine;
        if constexpr (r == 0 && rows <= kFewRows) ahead.fetch(c, i / kPair);
        IntLanes line[2] = {load_line(lines, part), load_line(lines + kLine, part)};
        Lanes step = output_steps(bytes + all.steps + i / kOctet * int64_t(sizeof(BFloat16)), r);
        each<rows>([&](auto m) INLINE_BODY {
          const Factor& factor = factors[m * all.count + c];
          Dots dots;
          dots.second = repeat_word(factor.offset);
          each<2>([&](auto half) INLINE_BODY {
            constexpr int64_t kFirst = half * kOctet / 2;
            dots.add(line[half], factor.octet.four(0, kFirst), factor.octet.four(1, kFirst));
          });
          sums[m][r] = multiply_add(dots.sum(), step, sums[m][r]);
        });
      }
    });
    each<rows>([&](auto m) INLINE_BODY {
      T* to = y[m] + at;
      Lanes first = multiply_add(fill(scales[m]), sums[m][0], load_lanes(to));
      Lanes second = multiply_add(fill(scales[m]), sums[m][1], load_lanes(to + kLanes));
      store_in_order(to, first, second);
    });
  }

  // Lanes hold ranks, each twice, for both halves of octets.
  template <int rows>
  static void shrink_chunk(const Given* const* numbers, int64_t size, const Ranks& all, int64_t from,
                          float* inner, const Ranks& then) {
    constexpr int kSets = rows <= 2 ? 2 : 1;  // sets of sums, so that products need not wait for each other
    const char* bytes = all.at(from);
    Ahead ahead(then, (size + kGroup - 1) / kGroup);
    Lanes sums[rows][kParts] = {};
    for (int64_t i = 0; i < size; i += kGroup) {
      int64_t octets = std::min<int64_t>(kOctets, (size - i + kOctet - 1) / kOctet);
      Lanes steps[kParts];
      rank_steps(bytes + all.steps + i / kGroup * kRanks * sizeof(BFloat16), steps);
      const char* lines = bytes + i * kRanks;
      if constexpr (rows <= kFewRows) ahead.fetch(from, i / kGroup);
      each<kParts>([&](auto p) INLINE_BODY {
        Dots dots[rows][kSets];
        each<rows>([&](auto m) INLINE_BODY {
          dots[m][0].second = repeat_two(numbers[m][i / kGroup].offsets);
        });
        auto add = [&](int64_t o, auto set) INLINE_BODY {
          IntLanes line = load_line(lines + o * kLine, p);
          each<rows>([&](auto m) INLINE_BODY {
            const Octet& octet = numbers[m][i / kGroup].octets[o];
            dots[m][set].add(line, octet.all(0), octet.all(1));
          });
        };
        if (octets == kOctets)
          each<kOctets>([&](auto o) INLINE_BODY {
            add(o, std::integral_constant<int, o % kSets>{});
          });
        else
          for (int64_t o = 0; o < octets; ++o) add(o, std::integral_constant<int, 0>{});
        each<rows>([&](auto m) INLINE_BODY {
          Dots total = dots[m][0];
          if constexpr (kSets == 2) {
            total.first += dots[m][1].first;
            total.second += dots[m][1].second;
          }
          Lanes factor = steps[p] * fill(numbers[m][i / kGroup].scale);
          sums[m][p] = multiply_add(total.sum(), factor, sums[m][p]);
        });
      });
    }
    each<rows>([&](auto m) INLINE_BODY {
      float halves[16];
      for (int p = 0; p < kParts; ++p) store(halves + p * kLanes, sums[m][p]);
      float* to = inner + (m * all.count + from) * kRanks;
      for (int r = 0; r < kRanks; ++r) to[r] = halves[2 * r] + halves[2 * r + 1];
    });
  }

  static ALWAYS_INLINE IntLanes load_line(const char* line, int part) {
    IntLanes bytes;
    std::memcpy(&bytes, line + part * sizeof bytes, sizeof bytes);
    return bytes;
  }

  // The sum of all lanes in the same half of eight, in each of them.
  static ALWAYS_INLINE IntLanes sum_of_fours(IntLanes x) {
#if defined(__AVX512F__)
    x += __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    return x + __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#else
    x += __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    return x + __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#endif
  }

  // The steps of a chunk's ranks, each twice.
  static ALWAYS_INLINE void rank_steps(const char* from, Lanes* to) {
#if defined(__AVX512F__)
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    __m512i wide = _mm512_castsi256_si512(
        _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)from)));
    to[0] = (Lanes)_mm512_slli_epi32(_mm512_permutexvar_epi32(twice, wide), 16);
#else
    Lanes all = load_lanes((const BFloat16*)from);
    to[0] = __builtin_shufflevector(all, all, 0, 0, 1, 1, 2, 2, 3, 3);
    to[1] = __builtin_shufflevector(all, all, 4, 4, 5, 5, 6, 6, 7, 7);
#endif
  }
  // The steps of a register of outputs, the same for eight neighbours.
  static ALWAYS_INLINE Lanes output_steps(const char* from, int place) {
#if defined(__AVX512F__)
    int32_t two;
    std::memcpy(&two, from + place * sizeof two, sizeof two);
    const __m512i left = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 16, 16, 16, 16, 16, 16, 16, 16);
    return (Lanes)((IntLanes)_mm512_sllv_epi32((__m512i)repeat_word(two), left) &
                   int32_t(0xffff0000));
#else
    return fill(to_float(((const BFloat16*)from)[place]));
#endif
  }
};

}  // namespace native::lora
