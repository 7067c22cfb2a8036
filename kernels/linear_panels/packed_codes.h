// Records as the weights of a product, see fp32_tiles.h: few rows use them as they are stored,
// `InRegisters`, panel by panel in the order of memory, whose speed is theirs; many after unpacking
// into the cache, `InCache`, piece by piece.
//
// A block in the cache is scales, and minima kMins after them, [groups][16] in fp32, then from
// kCodes on the codes, kSize elements in all. `put<R>(words, half, to)` writes the codes of four
// inputs, for the outputs of one register, and returns the next place. For each group of each block
// that is multiplied, `ahead.fetch()` is called once.
#pragma once
#include "ahead.h"
#include "fp32_rows.h"
#include "product.h"
#include "records.h"

namespace native::panels {

template <class R, class InRegisters, class InCache>
class PackedCodes {
 public:
  using Element = typename InCache::Element;

  PackedCodes(const uint8_t* panels, int64_t blocks) : panels_(panels), blocks_(blocks) {}

  InRegisters whole(int64_t strip) const { return {panel(strip), blocks_}; }

  InCache piece(int64_t strip, int64_t strips, int64_t first, int64_t last, int64_t tiles) const {
    first /= kBlock;
    last /= kBlock;
    int64_t count = last - first;
    auto* data = (Element*)strips::scratch<fp32::NumberOfWeight<Element>>(strips * count *
                                                                          InCache::kSize);
    Element* to = data;
    for (int64_t s = 0; s < strips; ++s)
      for (int64_t b = first; b < last; ++b, to += InCache::kSize)
        unpack(R::block(panel(strip + s), blocks_, b), to);
    // The next piece is of these strips, or of those behind them.
    bool ends = last == blocks_;
    Block next = R::block(panel(strip + (ends ? strips : 0)), blocks_, ends ? 0 : last);
    int64_t panel_bytes = R::panel_bytes(blocks_);
    if (R::has_factors)
      for (int64_t s = 0; s < strips; ++s)
        fetch<R::factor_bytes>(next.factors + s * panel_bytes);
    return {data, first, count,
            Ahead(next.record, count * R::bytes, strips, panel_bytes, tiles * count * R::groups)};
  }

 private:
  const uint8_t* panel(int64_t strip) const { return panels_ + strip * R::panel_bytes(blocks_); }

  static void unpack(Block block, Element* to) {
    for (int part = 0; part < fp32::kParts; ++part) {
      Element* at = to + part * kLanes;
      for (int g = 0; g < R::groups; ++g) {
        store((float*)at + g * 16, R::scales(block, g, part));
        if (R::has_min) store((float*)at + g * 16 + InCache::kMins, R::mins(block, g, part));
      }
      at += InCache::kCodes;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half)
#pragma GCC unroll 4
        for (int q = 0; q < kQuads / 2; ++q)
          at = InCache::template put<R>(R::words(block.record, half, q, part), half, at);
    }
  }

  const uint8_t* panels_;
  int64_t blocks_;
};

// The whole product: `prepare(X*)` returns its rows of X as `fp32::Rows<Number>`, `Codes<R>` are
// the weights. Rows are prepared per storage type and multiplied per record, so that neither is
// compiled for both.
template <class Number, template <class> class Codes, class Prepare>
void multiply_packed(const Product& product, Prepare prepare) {
  const strips::Problem& p = product.problem;
  fp32::Rows<Number> rows;
  strips::FinishRows finish;
  with_type(product.dtype, [&](auto* tag) {
    rows = prepare(tag);
    finish = strips::finish_rows<std::remove_pointer_t<decltype(tag)>>;
  });
  auto run = [&](auto* record) {
    using R = std::remove_pointer_t<decltype(record)>;
    fp32::multiply(p, rows, Codes<R>(product.panels, p.inputs / kBlock), finish);
  };
  if constexpr (std::is_integral_v<Number>)
    with_integers(product.format, run);
  else
    with_record(product.format, run);
}

}  // namespace native::panels
