// One row per thread at a time: greedy rows are an argmax over the stored logits; the others become
// fp32 in scratch memory, thresholds come from bisecting the order over few candidates, and in the
// random race only tokens that could win it are judged exactly.
//
// The arithmetic behind decisions (noise.py, reference.py) is single fp32 operations; a fused
// multiply-add would change their bits:
// compile with -ffp-contract=off
#include <cmath>
#include <type_traits>

#include "draw.h"
#include "edits.h"
#include "native.h"
#include "peak.h"
#include "pieces.h"
#include "rows.h"

namespace {

template <class T>
void sample_row(const T* logits, int64_t size, const Knobs& knobs, const Edits* edits, int64_t row,
                int64_t rows, int64_t& token_id, int64_t& error, int64_t& num_kept,
                int64_t* masses) {
  token_id = num_kept = masses[0] = masses[1] = 0;
  Peak peak = find_peak(logits, size);
  error = is_finite(peak) ? kFine : kNotFinite;
  if (error != kFine) return;
  bool changes = edits && is_edited(*edits, row, rows);
  bool greedy = std::isinf(knobs.inverse_temperature);
  if (greedy && !changes) {
    token_id = peak.first;
    num_kept = 1;
    return;
  }
  // Kept between steps: fresh memory of this size costs more page faults than the arithmetic takes.
  static thread_local Scratch scratch;
  const float* x;
  if constexpr (std::is_same_v<T, float>) x = logits;
  bool cuts = !greedy && knobs.top_n_sigma > 0.0;
  if (changes || cuts || !std::is_same_v<T, float>) {
    scratch.values.resize(size);
    float* values = scratch.values.data();
    copy(values, logits, size, changes ? mask_of(*edits, size, row, rows) : nullptr);
    x = values;
    if (changes) {
      edit(values, *edits, row, rows);
      peak = find_peak(values, size);
      error = is_finite(peak) ? kFine : kNoTokenLeft;
      if (error != kFine) return;
    }
    if (cuts)
      keep_near_peak(values, size, peak.value, knobs.top_n_sigma, unit_exponent(size) / 2);
  }
  if (greedy) {
    token_id = peak.first;
    num_kept = 1;
    return;
  }
  Row(knobs, x, size, peak, scratch).draw(token_id, num_kept, masses);
}

}  // namespace

extern "C" void tandem_sample_tokens(int64_t dtype, const void* logits, int64_t stride,
                                     const void* table, const void* offsets, const void* penalties,
                                     const void* penalised_ids, const void* counts,
                                     const void* biased_ids, const void* biases,
                                     const void* forbidden_ids, const void* masks, void* token_ids,
                                     void* errors, void* num_kept, void* masses, int64_t rows,
                                     int64_t size) {
  Edits edits{(const int64_t*)offsets,       (const double*)penalties, (const int64_t*)penalised_ids,
              (const int64_t*)counts,        (const int64_t*)biased_ids, (const double*)biases,
              (const int64_t*)forbidden_ids, (const uint64_t*)masks};
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    int64_t threads = native::worth_threads(rows * size) ? native::num_threads() : 1;
    native::for_pieces(rows, threads, [&](int64_t row) {
      sample_row((const T*)logits + row * stride, size, ((const Knobs*)table)[row],
                 offsets ? &edits : nullptr, row, rows, ((int64_t*)token_ids)[row],
                 ((int64_t*)errors)[row], ((int64_t*)num_kept)[row], (int64_t*)masses + row * 2);
    });
  });
}
