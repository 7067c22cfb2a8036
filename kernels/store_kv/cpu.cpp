// Copies this step's keys and values into their slots of the paged cache.
#include "native.h"

extern "C" void tandem_store_kv(int64_t element_bytes, const char* kv, int64_t token_stride,
                                char* cache, int64_t block_stride, const int64_t* blocks,
                                const int64_t* slots, int64_t tokens, int64_t heads,
                                int64_t block_size, int64_t dim) {
  int64_t row = dim * element_bytes;
#pragma omp parallel for if (native::worth_threads(tokens * heads * dim))
  for (int64_t token = 0; token < tokens; ++token) {
    const char* source = kv + token * token_stride * element_bytes;
    char* target = cache + blocks[token] * block_stride * element_bytes + slots[token] * row;
    for (int64_t head = 0; head < heads; ++head)
      std::memcpy(target + head * block_size * row, source + head * row, row);
  }
}
