// Arranges rows of a GGUF tensor in panels, with the bytes of `gguf.py::panels_by_torch`. The
// layouts of blocks are explained in `kernels/linear_gguf/dequantize.py`, that of panels in
// `panels.py`.
#include <algorithm>
#include <cstring>

#include "native.h"
#include "pieces.h"

namespace {

using namespace native;

constexpr int64_t kLanes = 16, kBlock = 32, kQuads = 8, kQuad = 4, kStep = kLanes * kQuad;

// The bits of an fp16 number.
uint16_t half_at(const uint8_t* from) {
  uint16_t bits;
  std::memcpy(&bits, from, sizeof bits);
  return bits;
}

// What a type says of a record, which is 32 inputs: `codes` writes 32 of them; `scale` and `min`
// return those of a group. A block is one record, or eight that share factors.
struct OneRecord {
  using Scale = uint16_t;  // fp16
  static constexpr int64_t kRecords = 1, kGroups = 1, kFactors = 0;
  static constexpr int64_t kScalesOfGroup = 1;
  static uint16_t scale(const uint8_t* block, int64_t, int64_t) { return half_at(block); }
  static uint16_t min(const uint8_t* block, int64_t, int64_t) { return half_at(block + 2); }
  static uint16_t factor(const uint8_t*, int64_t) { return 0; }
};

struct EightRecords {
  using Scale = int8_t;
  static constexpr int64_t kRecords = 8, kGroups = 1, kFactors = 2;
  static constexpr int64_t kScalesOfGroup = 2;
  static int8_t min(const uint8_t*, int64_t, int64_t) { return 0; }
};

// 16 bytes with the low bits of 32 codes.
void nibbles(const uint8_t* from, uint8_t* codes) {
  for (int64_t i = 0; i < 16; ++i) codes[i] = from[i] & 15;
  for (int64_t i = 0; i < 16; ++i) codes[16 + i] = from[i] >> 4;
}

void add_fifth_bits(const uint8_t* from, uint8_t* codes) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof bits);
  for (int64_t i = 0; i < kBlock; ++i) codes[i] |= (bits >> i & 1) << 4;
}

// Some bits of each of 32 bytes.
void take(const uint8_t* from, int64_t shift, int mask, uint8_t* codes) {
  for (int64_t i = 0; i < kBlock; ++i) codes[i] = from[i] >> shift & mask;
}

void add(const uint8_t* from, int64_t shift, int mask, int64_t place, uint8_t* codes) {
  for (int64_t i = 0; i < kBlock; ++i) codes[i] |= (from[i] >> shift & mask) << place;
}

struct Q4_0 : OneRecord {
  static constexpr int64_t kBytes = 18, kBits = 4;
  static void codes(const uint8_t* b, int64_t, uint8_t* to) { nibbles(b + 2, to); }
};

struct Q4_1 : OneRecord {
  static constexpr int64_t kBytes = 20, kBits = 4, kScalesOfGroup = 2;
  static void codes(const uint8_t* b, int64_t, uint8_t* to) { nibbles(b + 4, to); }
};

struct Q5_0 : OneRecord {
  static constexpr int64_t kBytes = 22, kBits = 5;
  static void codes(const uint8_t* b, int64_t, uint8_t* to) {
    nibbles(b + 6, to);
    add_fifth_bits(b + 2, to);
  }
};

struct Q5_1 : OneRecord {
  static constexpr int64_t kBytes = 24, kBits = 5, kScalesOfGroup = 2;
  static void codes(const uint8_t* b, int64_t, uint8_t* to) {
    nibbles(b + 8, to);
    add_fifth_bits(b + 4, to);
  }
};

struct Q8_0 : OneRecord {
  static constexpr int64_t kBytes = 34, kBits = 8;
  static void codes(const uint8_t* b, int64_t, uint8_t* to) {
    for (int64_t i = 0; i < kBlock; ++i) to[i] = b[2 + i] ^ 128;
  }
};

struct Q2_K : EightRecords {
  static constexpr int64_t kBytes = 84, kBits = 4, kGroups = 2;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    take(b + 16 + record / 4 * 32, record % 4 * 2, 3, to);
  }
  static int8_t scale(const uint8_t* b, int64_t record, int64_t group) {
    return b[2 * record + group] & 15;
  }
  static int8_t min(const uint8_t* b, int64_t record, int64_t group) {
    return -(b[2 * record + group] >> 4);
  }
  static uint16_t factor(const uint8_t* b, int64_t i) { return half_at(b + 80 + 2 * i); }
};

struct Q3_K : EightRecords {
  static constexpr int64_t kBytes = 110, kBits = 4, kGroups = 2, kFactors = 1, kScalesOfGroup = 1;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    take(b + 32 + record / 4 * 32, record % 4 * 2, 3, to);
    add(b, record, 1, 2, to);
  }
  static int8_t scale(const uint8_t* b, int64_t record, int64_t group) {
    int64_t i = 2 * record + group;
    int low = b[96 + i % 8] >> i / 8 * 4 & 15, high = b[104 + i % 4] >> i / 4 * 2 & 3;
    return (low | high << 4) - 32;
  }
  static uint16_t factor(const uint8_t* b, int64_t) { return half_at(b + 108); }
};

// Scales and minima of 6 bits, in 12 bytes from byte 4 on.
struct SixBitScales : EightRecords {
  static int8_t scale(const uint8_t* b, int64_t record, int64_t) { return six(b + 4, record, 0); }
  static int8_t min(const uint8_t* b, int64_t record, int64_t) { return -six(b + 4, record, 4); }
  static uint16_t factor(const uint8_t* b, int64_t i) { return half_at(b + 2 * i); }

 private:
  static int six(const uint8_t* p, int64_t record, int64_t first) {
    if (record < 4) return p[first + record] & 63;
    return (p[4 + record] >> first & 15) | (p[first + record - 4] >> 2 & 0x30);
  }
};

struct Q4_K : SixBitScales {
  static constexpr int64_t kBytes = 144, kBits = 4;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    take(b + 16 + record / 2 * 32, record % 2 * 4, 15, to);
  }
};

struct Q5_K : SixBitScales {
  static constexpr int64_t kBytes = 176, kBits = 5;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    take(b + 48 + record / 2 * 32, record % 2 * 4, 15, to);
    add(b + 16, record, 1, 4, to);
  }
};

struct Q6_K : EightRecords {
  static constexpr int64_t kBytes = 210, kBits = 6, kGroups = 2, kFactors = 1, kScalesOfGroup = 1;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    int64_t half = record / 4, place = record % 4;
    take(b + half * 64 + place % 2 * 32, place / 2 * 4, 15, to);
    add(b + 128 + half * 32, place * 2, 3, 4, to);
  }
  static int8_t scale(const uint8_t* b, int64_t record, int64_t group) {
    return b[192 + 2 * record + group];
  }
  static uint16_t factor(const uint8_t* b, int64_t) { return half_at(b + 208); }
};

struct IQ4_XS : EightRecords {
  static constexpr int64_t kBytes = 136, kBits = 4, kFactors = 1, kScalesOfGroup = 1;
  static void codes(const uint8_t* b, int64_t record, uint8_t* to) {
    nibbles(b + 8 + record * 16, to);
  }
  static int8_t scale(const uint8_t* b, int64_t record, int64_t) {
    int low = b[4 + record / 2] >> record % 2 * 4 & 15, high = b[2 + record / 4] >> record % 4 * 2 & 3;
    return (low | high << 4) - 32;
  }
  static uint16_t factor(const uint8_t* b, int64_t) { return half_at(b); }
};

// Puts 32 codes of an output to their places in a record, from its first byte on. The other bits
// of these bytes are zero.
template <int64_t kBits>
void place(const uint8_t* codes, uint8_t* to) {
  for (int64_t q = 0; q < kQuads; ++q)
    for (int64_t i = 0; i < kQuad; ++i) {
      uint8_t code = codes[q * kQuad + i];
      if constexpr (kBits == 8) {
        to[q * kStep + i] = code;
      } else {
        constexpr int64_t kHalf = kQuads / 2, kUpper = kBits - 4;
        to[q % kHalf * kStep + i] |= (code & 15) << (q / kHalf * 4);
        if constexpr (kUpper > 0) {
          constexpr int64_t kTogether = 8 / kUpper;  // quads that share bytes
          to[(kHalf + q / kTogether) * kStep + i] |= code >> 4 << (q % kTogether * kUpper);
        }
      }
    }
}

template <class Type>
struct Packer {
  using Scale = typename Type::Scale;
  static constexpr int64_t kScaleBytes =
      Type::kGroups * Type::kScalesOfGroup * kLanes * int64_t(sizeof(Scale));
  static constexpr int64_t kRecordBytes = kScaleBytes + kBlock * kLanes * Type::kBits / 8;

  // Adds an output to a panel of zeros.
  static void add_row(const uint8_t* row, int64_t records, int64_t lane, uint8_t* panel) {
    int64_t blocks = records / Type::kRecords;
    auto* factors = (uint16_t*)panel;
    uint8_t* record = panel + blocks * Type::kFactors * kLanes * 2;
    for (int64_t b = 0; b < blocks; ++b, row += Type::kBytes) {
      for (int64_t i = 0; i < Type::kFactors; ++i, factors += kLanes)
        factors[lane] = Type::factor(row, i);
      for (int64_t r = 0; r < Type::kRecords; ++r, record += kRecordBytes) {
        auto* scales = (Scale*)record;
        for (int64_t g = 0; g < Type::kGroups; ++g) {
          scales[g * kLanes + lane] = Type::scale(row, r, g);
          if constexpr (Type::kScalesOfGroup == 2)
            scales[(Type::kGroups + g) * kLanes + lane] = Type::min(row, r, g);
        }
        uint8_t codes[kBlock];
        Type::codes(row, r, codes);
        place<Type::kBits>(codes, record + kScaleBytes + lane * kQuad);
      }
    }
  }
};

template <class Type>
void pack(const uint8_t* rows, int64_t row_stride, int64_t outputs, int64_t records, uint8_t* out,
          int64_t panel_bytes) {
  int64_t panels = (outputs + kLanes - 1) / kLanes;
  for_ranges(panels, outputs * records * kBlock, [&](int64_t first, int64_t last) {
    for (int64_t p = first; p < last; ++p) {
      uint8_t* panel = out + p * panel_bytes;
      std::memset(panel, 0, panel_bytes);
      int64_t lanes = std::min(kLanes, outputs - p * kLanes);
      for (int64_t lane = 0; lane < lanes; ++lane)
        Packer<Type>::add_row(rows + (p * kLanes + lane) * row_stride, records, lane, panel);
    }
  });
}

}  // namespace

// `type`: ggml's number. `records`: those of an output. `out`: [panels, panel_bytes].
extern "C" void tandem_panels_from_gguf(int64_t type, const uint8_t* rows, int64_t row_stride,
                                        int64_t outputs, int64_t records, uint8_t* out,
                                        int64_t panel_bytes) {
  auto with = [&](auto one) {
    pack<decltype(one)>(rows, row_stride, outputs, records, out, panel_bytes);
  };
  switch (type) {
    case 2: return with(Q4_0{});
    case 3: return with(Q4_1{});
    case 6: return with(Q5_0{});
    case 7: return with(Q5_1{});
    case 8: return with(Q8_0{});
    case 10: return with(Q2_K{});
    case 11: return with(Q3_K{});
    case 12: return with(Q4_K{});
    case 13: return with(Q5_K{});
    case 14: return with(Q6_K{});
    case 20: return with(Q4_0{});  // IQ4_NL, whose codes are stored alike
    case 23: return with(IQ4_XS{});
  }
}
