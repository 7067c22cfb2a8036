// Rows whose steps have an order of their own, one per thread at a time: the tokens that the steps
// leave are found as in `cpu.cpp`, by bisecting the order over few candidates, step by step.
//
// compile with -ffp-contract=off
#include <cmath>
#include <type_traits>

#include "edits.h"
#include "narrowing.h"
#include "native.h"
#include "peak.h"
#include "pieces.h"
#include "rows.h"

namespace {

// Returns the scale before the draw; 0: the row is bad or greedy, and `left` stays as it is.
template <class T>
float narrow_row(const T* logits, int64_t size, const Knobs& knobs, const Edits* edits, int64_t row,
                 int64_t rows, const int64_t* steps, T* left) {
  Peak peak = find_peak(logits, size);
  if (std::isinf(knobs.inverse_temperature) || !is_finite(peak)) return 0.0f;
  // Kept between steps: fresh memory of this size costs more page faults than the arithmetic takes.
  static thread_local Scratch scratch;
  scratch.values.resize(size);
  float* values = scratch.values.data();
  bool changes = edits && is_edited(*edits, row, rows);
  copy(values, logits, size, changes ? mask_of(*edits, size, row, rows) : nullptr);
  if (changes) {
    edit(values, *edits, row, rows);
    peak = find_peak(values, size);
    if (!is_finite(peak)) return 0.0f;
  }
  Narrowing narrowing(knobs, values, size, peak.value, scratch);
  for (; Step(*steps) != Step::end; ++steps) narrowing.take(Step(*steps));
  std::fill_n(left, size, native::from_float<T>(-kInfinity));
  const Candidates& kept = narrowing.left();
  for (int64_t i = 0; i < kept.size; ++i) left[kept.ids[i]] = logits[kept.ids[i]];
  return narrowing.scale();
}

}  // namespace

// Row `places[i]` takes `num_steps` of `steps` from `i * num_steps` on; `left` has the logits' shape.
extern "C" void tandem_narrow_rows(int64_t dtype, const void* logits, int64_t stride,
                                   const void* table, const void* offsets, const void* penalties,
                                   const void* penalised_ids, const void* counts,
                                   const void* biased_ids, const void* biases,
                                   const void* forbidden_ids, const void* masks, const void* places,
                                   const void* steps, void* left, void* scales, int64_t rows,
                                   int64_t size, int64_t num_places, int64_t num_steps) {
  Edits edits{(const int64_t*)offsets,       (const double*)penalties, (const int64_t*)penalised_ids,
              (const int64_t*)counts,        (const int64_t*)biased_ids, (const double*)biases,
              (const int64_t*)forbidden_ids, (const uint64_t*)masks};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    int64_t threads = native::worth_threads(num_places * size) ? native::num_threads() : 1;
    native::for_pieces(num_places, threads, [&](int64_t i) {
      int64_t row = ((const int64_t*)places)[i];
      ((double*)scales)[i] = narrow_row(
          (const T*)logits + row * stride, size, ((const Knobs*)table)[row],
          offsets ? &edits : nullptr, row, rows, (const int64_t*)steps + i * num_steps,
          (T*)left + row * size);
    });
  });
}
