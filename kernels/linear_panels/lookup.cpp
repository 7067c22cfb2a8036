// Looks up single rows of panels, dequantised with the bits of `panels.py::Codes.dequantised`.
//
// Every operation is rounded separately, as there:
// compile with -ffp-contract=off
#include <algorithm>

#include "native.h"
#include "pieces.h"

namespace {

using namespace native;

constexpr int64_t kLanes = 16, kBlock = 32, kQuads = 8, kQuad = 4, kFactorBlocks = 8;
constexpr int64_t kInt8 = 3, kPowerOfTwo = 4;  // as in panels.py

float to_number(int8_t x) { return x; }
template <class T>
float to_number(T x) {
  return to_float(x);
}

struct Panels {
  const uint8_t* data;
  int64_t panel_bytes, record_bytes, rows, inputs;
  int64_t bits, group;
  bool has_min;
  const float* numbers;  // the numbers of the codes
};

template <class T, class Scale>
class Lookup {
 public:
  explicit Lookup(const Panels& panels)
      : p_(panels), groups_(kBlock / p_.group), factors_(kLanes * (p_.has_min ? 2 : 1)) {}

  // A number beyond the last row would read memory outside the panels.
  void operator()(int64_t row, T* to) const {
    row = std::clamp<int64_t>(row, 0, p_.rows - 1);
    const uint8_t* panel = p_.data + row / kLanes * p_.panel_bytes;
    int64_t blocks = p_.inputs / kBlock;
    const uint8_t* records = panel + p_.panel_bytes - blocks * p_.record_bytes;
    for (int64_t b = 0; b < blocks; ++b)
      block(records + b * p_.record_bytes, (const Float16*)panel + b / kFactorBlocks * factors_,
            row % kLanes, to + b * kBlock);
  }

 private:
  static constexpr bool kHasFactors = std::is_same_v<Scale, int8_t>;

  void block(const uint8_t* record, const Float16* factors, int64_t lane, T* to) const {
    auto* scales = (const Scale*)record;
    auto* mins = scales + groups_ * kLanes;
    float factor = kHasFactors ? to_float(factors[lane]) : 1;
    float min_factor = kHasFactors && p_.has_min ? to_float(factors[kLanes + lane]) : 1;
    const uint8_t* codes = record + groups_ * kLanes * sizeof(Scale) * (p_.has_min ? 2 : 1);
    uint8_t found[kBlock];
    take_apart(codes + lane * kQuad, found);
    for (int64_t i = 0; i < kBlock; ++i) {
      int64_t at = i / p_.group * kLanes + lane;
      float weight = p_.numbers[found[i]] * (to_number(scales[at]) * factor);
      if (p_.has_min) weight += to_number(mins[at]) * min_factor;
      to[i] = from_float<T>(weight);
    }
  }

  // Unpacks the codes of an output from its first byte.
  void take_apart(const uint8_t* first, uint8_t* found) const {
    constexpr int64_t kStep = kLanes * kQuad, kHalf = kQuads / 2;  // from quad to quad
    bool is_whole = p_.bits == 8;
    for (int64_t q = 0; q < kQuads; ++q)
      for (int64_t i = 0; i < kQuad; ++i) {
        uint8_t byte = first[(is_whole ? q : q % kHalf) * kStep + i];
        found[q * kQuad + i] = is_whole ? byte : q < kHalf ? byte & 15 : byte >> 4;
      }
    int64_t upper = p_.bits - 4;
    if (is_whole || upper == 0) return;
    const uint8_t* rest = first + kHalf * kStep;
    int64_t together = 8 / upper;  // quads that share bytes
    for (int64_t q = 0; q < kQuads; ++q)
      for (int64_t i = 0; i < kQuad; ++i) {
        int bits = rest[q / together * kStep + i] >> q % together * upper & ((1 << upper) - 1);
        found[q * kQuad + i] |= bits << 4;
      }
  }

  const Panels p_;
  const int64_t groups_, factors_;  // of a record, and shared by several
};

}  // namespace

// `out`: [count, inputs] of type `dtype`. `numbers`: as many as there are codes.
extern "C" void tandem_panel_rows(int64_t dtype, const int64_t* rows, int64_t count, void* out,
                                  const void* data, int64_t panel_bytes, int64_t record_bytes,
                                  int64_t num_rows, int64_t inputs, int64_t bits,
                                  int64_t scale_dtype, int64_t group, int64_t has_min,
                                  const float* numbers) {
  Panels panels{(const uint8_t*)data, panel_bytes, record_bytes, num_rows, inputs,
                bits, group, has_min != 0, numbers};
  with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    auto look_up_all = [&](auto* tag) {
      Lookup<T, std::remove_pointer_t<decltype(tag)>> look_up(panels);
      for_ranges(count, count * inputs, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) look_up(rows[i], (T*)out + i * inputs);
      });
    };
    if (scale_dtype == kInt8) return look_up_all(static_cast<int8_t*>(nullptr));
    if (scale_dtype == kPowerOfTwo) return look_up_all(static_cast<PowerOfTwo*>(nullptr));
    with_type(scale_dtype, look_up_all);
  });
}
