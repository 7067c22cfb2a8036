// Attention over the paged cache, with blocks read in place: decodes, prompt chunks and mixtures.
//
// A task is some rows of one sequence and one key head; a row is a query position and one of the
// query heads that share the key head. The task goes over the keys in tiles of kTile, packs a tile
// once for all its rows, and keeps a running maximum and sum (Milakov and Gimelshein 2018,
// arXiv:1805.02867; Dao 2023, arXiv:2307.08691). Every kSegment keys the running result is merged
// into the earlier one, so that few long sequences can occupy many threads.
//
// Tiles and segments begin at positions divisible by their length, each score and each sum adds up
// in one order, and keys that a row must not see change no bit of it. A row's result is therefore
// the same whatever else is computed: as a decode or in any chunk, alone or in a batch, on any
// number of threads.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "pieces.h"
#include "plan.h"
#include "task.h"
#include "worker.h"

namespace {

template <class T>
void attend(const Arguments& a) {
  Plan plan(a, Worker<T>::width(a));
  std::vector<float> saved(plan.saved_floats);
  int64_t num_tasks = plan.tasks.size(), num_merges = plan.merges.size();
  native::share_pieces(num_tasks, plan.num_threads, [&](native::Pieces& pieces) {
    Worker<T> worker(a, plan.most_rows);
    for (int64_t i; pieces.take(i);) {
      const Task& task = plan.tasks[i];
      // Most likely this thread's next task.
      int64_t next = std::min(i + plan.num_threads, num_tasks - 1);
      worker.run(task, task.saved_at < 0 ? nullptr : saved.data() + task.saved_at,
                 plan.tasks[next]);
    }
  });
  native::share_pieces(num_merges, plan.num_threads, [&](native::Pieces& pieces) {
    Worker<T> worker(a, plan.most_rows);
    for (int64_t i; pieces.take(i);) {
      const Plan::Merge& merge = plan.merges[i];
      worker.combine(merge.task, saved.data() + merge.task.saved_at, merge.num_segments);
    }
  });
}

}  // namespace

extern "C" void tandem_paged_attention(
    int64_t dtype, const void* q, int64_t q_token_stride, int64_t q_head_stride, const void* cache,
    int64_t cache_format, int64_t block_stride, const float* scales, int64_t scales_stride,
    const int32_t* block_tables, int64_t table_stride, const int32_t* context_lens,
    const int32_t* first_rows, const int32_t* key_ends, const float* sinks, void* out,
    int64_t sequences, int64_t parts, int64_t kv_heads, int64_t group, int64_t block_size,
    int64_t dim, int64_t window, int64_t aligned, float scale, float soft_cap) {
  Arguments a{q,          q_token_stride, q_head_stride, cache,        cache_format, block_stride,
              scales,     scales_stride,  block_tables,  table_stride, context_lens, first_rows,
              key_ends,   sinks,          out,           sequences,    parts,        kv_heads,
              group,      block_size,     dim,           window,       aligned,      scale,
              soft_cap};
  native::with_type(dtype, [&](auto* tag) { attend<std::remove_pointer_t<decltype(tag)>>(a); });
}
