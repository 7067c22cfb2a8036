// The arguments of a call, and the parts into which it is cut.
#pragma once
#include <algorithm>
#include <cstdint>

#include "native.h"

namespace {

using native::divide_up;

constexpr int64_t kTile = 64;      // Keys whose weights are computed at once.
constexpr int64_t kSegment = 512;  // Keys between merges.
constexpr int64_t kMaxRows = 96;   // Rows of a task: they repay its packing and fit in an L2 cache.

inline int64_t round_up(int64_t a, int64_t b) { return divide_up(a, b) * b; }

// As kernels/paged_attention/cpu.py passes them.
enum CacheFormat : int { kSame = 0, kInt8 = 1, kFloat8 = 2 };

struct Arguments {
  const void* q;
  int64_t q_token_stride, q_head_stride;
  const void* cache;
  int64_t cache_format, block_stride;
  const float* scales;  // Only with packed caches.
  int64_t scales_stride;
  const int32_t* block_tables;
  int64_t table_stride;
  const int32_t *context_lens, *first_rows;
  const int32_t* key_ends;  // Of each row; null if rows see the keys up to their own.
  const float* sinks;  // Of each query head; null without.
  void* out;
  int64_t sequences;
  int64_t parts;  // 2 for keys and values, 1 for keys that are the values, too.
  int64_t kv_heads, group, block_size, dim, window, aligned;
  float scale, soft_cap;

  // The first key that a row at this position sees.
  int64_t key_begin(int64_t position) const {
    if (window == 0) return 0;
    return aligned ? position / window * window : std::max<int64_t>(0, position + 1 - window);
  }
  // The first key after those that a row of a sequence sees.
  int64_t key_end(int64_t sequence, int64_t row) const {
    int64_t token = first_rows[sequence] + row;
    return key_ends ? key_ends[token] : context_lens[sequence] - first_rows[sequence + 1] + token + 1;
  }
};

// Some rows of a sequence and key head, over keys begin .. end - 1.
struct Task {
  int64_t sequence, head;
  int64_t first_row, num_rows;
  int64_t begin, end;
  int64_t saved_at;  // Place of a segment's result that is to be merged; -1 if it is not.
};

}  // namespace
