// Rounds all adapters of a file to 8 bits in one call, with the bits of
// `kernels/lora_gather/packed.py::pack`.
//
// Every operation is rounded separately, as there:
// compile with -ffp-contract=off
#include "packed.h"

namespace {

using namespace native;

// The layout's sizes, which the multiplication uses.
using Layout = lora::Packed<float>;
constexpr int kRanks = Layout::kRanks, kQuad = kRanks / 2;
constexpr int kGroup = Layout::kGroup, kOctet = lora::kOctet;
constexpr int kVec = sizeof(Vec) / sizeof(float), kVecs = kGroup / kVec;
static_assert(kVec == 2 * kOctet && kVec * kQuad == lora::kLine);

constexpr int kMost = 126;  // exponent of factors, and of numbers that they are applied to
constexpr float kLargest = 127.0f;

// One layer's update, a row of the caller's table.
struct Update {
  const void* a;  // [rank, inputs]
  const void* b;  // [rank, outputs]
  int64_t rank, inputs, outputs;
  uint8_t* packed_a;
  uint8_t* packed_b;
};

int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
float of_bits(int32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Neighbouring numbers of a rank that share steps, with zeros beyond their end.
struct Group {
  Vec numbers[kVecs] = {};

  Group() = default;
  template <class T>
  Group(const T* from, int64_t count) {
    T cut[kGroup];
    if (count < kGroup) {
      std::fill_n(cut, kGroup, T{});
      std::memcpy(cut, from, count * sizeof(T));
      from = cut;
    }
    for (int v = 0; v < kVecs; ++v) numbers[v] = load(from + v * kVec);
  }
  // Ranks beyond the last one are all zeros.
  template <class T>
  Group(const T* all, int64_t rank, int64_t ranks, int64_t size, int64_t first) {
    if (rank < ranks) *this = Group(all + rank * size + first, size - first);
  }
};

// 2^exponent as a normal number.
float power(int exponent) { return of_bits((exponent + 127) << 23); }

Words magnitudes(Vec x) { return (Words)x & 0x7fffffffu; }
Words larger_words(Words a, Words b) { return a > b ? a : b; }
// Magnitudes have the order of their bits.
float largest(Words all, int first = 0, int count = kVec) {
  uint32_t most = 0;
  for (int i = first; i < first + count; ++i) most = std::max<uint32_t>(most, all[i]);
  return of_bits(int32_t(most));
}

// The exponent of the power of two above a row's largest magnitude; 0 for zeros.
template <class T>
int exponent_above(const T* row, int64_t size) {
  Words most{};
  for (int64_t i = 0; i < size; i += kGroup)
    for (const Vec& x : Group(row + i, size - i).numbers) most = larger_words(most, magnitudes(x));
  int exponent = 0;
  if (float x = largest(most); x != 0) std::frexp(x, &exponent);
  return exponent;
}

float step_of(float largest) {
  return of_bits((bits_of(largest / kLargest) + 0xffff) & int32_t(0xffff0000));
}
float inverse(float step) { return step >= power(-kMost) ? 1 / step : 0.0f; }

// Numbers times `per_step`, or zero where that is not finite, rounded to the nearest integer, ties
// to even, plus kMiddle: the last bits of a sum in which neighbours are 1 apart.
Words bytes_of(Vec numbers, Vec per_step) {
  Words is_finite = (Words)(magnitudes(per_step) < 0x7f800000u);
  Vec sum = numbers * (Vec)((Words)per_step & is_finite) + broadcast(0x1.8p23f);
  return ((Words)sum + Layout::kMiddle) & 0xffu;
}

// The places of a chunk's steps and numbers; unused bytes of the steps' last line are zero.
struct Chunk {
  BFloat16* steps;
  uint8_t* numbers;
  int64_t end;  // end of the inputs or outputs that the chunk has numbers for

  Chunk(uint8_t* all, int64_t chunk, int64_t size) {
    uint8_t* begin = all + chunk * Layout::stride(size);
    steps = (BFloat16*)begin;
    numbers = begin + Layout::steps_end(size);
    end = (Layout::stride(size) - Layout::steps_end(size)) / kRanks;
    std::fill(begin, numbers, uint8_t(0));
  }
};

template <class T>
void pack_a(const T* a, int64_t rank, int64_t inputs, const float* factors, uint8_t* to) {
  for (int64_t c = 0; c * kRanks < rank; ++c) {
    Chunk chunk(to, c, inputs);
    for (int64_t first = 0; first < inputs; first += kGroup)
      for (int r = 0; r < kRanks; ++r) {
        Group group(a, c * kRanks + r, rank, inputs, first);
        Words most{};
        for (const Vec& x : group.numbers) most = larger_words(most, magnitudes(x));
        float factor = factors[c * kRanks + r], step = step_of(largest(most) * factor);
        chunk.steps[first / kGroup * kRanks + r] = from_float<BFloat16>(step);
        Vec per_step = broadcast(factor * inverse(step));
        int64_t count = std::min<int64_t>(kGroup, chunk.end - first);
        for (int64_t i = 0; i < count; i += kVec) {
          typedef uint8_t Octets __attribute__((vector_size(kVec)));
          Octets octets = __builtin_convertvector(bytes_of(group.numbers[i / kVec], per_step), Octets);
          uint8_t* line = chunk.numbers + (first + i) * kRanks + r * kOctet;
          std::memcpy(line, &octets, kOctet);
          std::memcpy(line + lora::kLine, (const char*)&octets + kOctet, kOctet);
        }
      }
  }
}

template <class T>
void pack_b(const T* b, int64_t rank, int64_t outputs, const float* factors, uint8_t* to) {
  for (int64_t c = 0; c * kRanks < rank; ++c) {
    Chunk chunk(to, c, outputs);
    for (int64_t first = 0; first < outputs; first += kGroup) {
      Group groups[kRanks];
      Words most[kVecs] = {};
      for (int r = 0; r < kRanks; ++r) {
        groups[r] = Group(b, c * kRanks + r, rank, outputs, first);
        for (int v = 0; v < kVecs; ++v) {
          Vec scaled = (Vec)magnitudes(groups[r].numbers[v]) * factors[c * kRanks + r];
          most[v] = larger_words(most[v], (Words)scaled);
        }
      }
      for (int64_t v = 0; v < (std::min<int64_t>(kGroup, chunk.end - first)) / kVec; ++v) {
        Vec inverses;
        for (int half = 0; half < kVec / kRanks; ++half) {
          float step = step_of(largest(most[v], half * kRanks, kRanks));
          chunk.steps[(first + v * kVec) / kRanks + half] = from_float<BFloat16>(step);
          for (int i = 0; i < kRanks; ++i) inverses[half * kRanks + i] = inverse(step);
        }
        for (int q = 0; q < kRanks / kQuad; ++q) {
          Words quads{};
          for (int k = 0; k < kQuad; ++k) {
            int r = q * kQuad + k;
            quads |= bytes_of(groups[r].numbers[v], factors[c * kRanks + r] * inverses) << 8 * k;
          }
          uint8_t* line = chunk.numbers + (first + v * kVec) * kRanks + q * lora::kLine;
          std::memcpy(line, &quads, sizeof quads);
        }
      }
    }
  }
}

template <class T>
void pack(const Update& update) {
  constexpr int64_t kMaxRanks = 256;
  float for_a[kMaxRanks] = {}, for_b[kMaxRanks] = {};
  auto *a = (const T*)update.a, *b = (const T*)update.b;
  for (int64_t r = 0; r < update.rank; ++r) {
    int of_a = exponent_above(a + r * update.inputs, update.inputs);
    int of_b = exponent_above(b + r * update.outputs, update.outputs);
    int exponent = std::clamp(std::min(of_b, kMost - of_a), -kMost, kMost);
    for_a[r] = power(exponent);
    for_b[r] = power(-exponent);
  }
  pack_a(a, update.rank, update.inputs, for_a, update.packed_a);
  pack_b(b, update.rank, update.outputs, for_b, update.packed_b);
}

}  // namespace

extern "C" void tandem_lora_pack(int64_t dtype, const void* updates, int64_t count) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    for (int64_t i = 0; i < count; ++i) pack<T>(((const Update*)updates)[i]);
  });
}
