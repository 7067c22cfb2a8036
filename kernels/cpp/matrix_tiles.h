// The matrix unit of Intel's processors (AMX): 16 × 16 sums of products of bf16 pairs, eight tiles.
// With TANDEM_EMULATE_MATRIX_TILES the few instructions are plain loops, so that code with them can
// be tested on any machine.
#pragma once
#include <cstdint>
#include <cstring>

#include "native.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define TANDEM_MATRIX_TILES 1
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(TANDEM_EMULATE_MATRIX_TILES)
#define TANDEM_MATRIX_TILES 1
#endif

namespace native {

// The argument of `tile_configure`.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if defined(TANDEM_EMULATE_MATRIX_TILES)

inline bool has_matrix_tiles() { return true; }

}  // namespace native

inline thread_local native::TileShapes tile_shapes;
inline thread_local float tile_data[8][16][16];

inline void tile_configure(const void* shapes) { std::memcpy(&tile_shapes, shapes, 64); }
inline void tile_release() {}
inline void tile_zero(int tile) { std::memset(tile_data[tile], 0, sizeof tile_data[tile]); }
inline void tile_load(int tile, const void* data, int64_t stride) {
  for (int r = 0; r < tile_shapes.rows[tile]; ++r)
    std::memcpy(tile_data[tile][r], (const char*)data + r * stride, tile_shapes.row_bytes[tile]);
}
inline void tile_store(int tile, void* data, int64_t stride) {
  for (int r = 0; r < tile_shapes.rows[tile]; ++r)
    std::memcpy((char*)data + r * stride, tile_data[tile][r], tile_shapes.row_bytes[tile]);
}
inline void tile_add_products(int sums, int a, int b) {
  auto half = [](float pair, int which) {
    native::BFloat16 halves[2];
    std::memcpy(halves, &pair, 4);
    return native::to_float(halves[which]);
  };
  for (int m = 0; m < tile_shapes.rows[sums]; ++m)
    for (int k = 0; k < tile_shapes.row_bytes[a] / 4; ++k)
      for (int n = 0; n < tile_shapes.row_bytes[sums] / 4; ++n)
        for (int i = 0; i < 2; ++i)
          tile_data[sums][m][n] += half(tile_data[a][m][k], i) * half(tile_data[b][k][n], i);
}

namespace native {

#elif defined(TANDEM_MATRIX_TILES)

// Macros, because the instructions contain their tiles' numbers.
#define tile_configure(shapes) _tile_loadconfig(shapes)
#define tile_release() _tile_release()
#define tile_zero(tile) _tile_zero(tile)
#define tile_load(tile, data, stride) _tile_loadd(tile, data, stride)
#define tile_store(tile, data, stride) _tile_stored(tile, data, stride)
#define tile_add_products(sums, a, b) _tile_dpbf16ps(sums, a, b)

// The kernel saves the unit's large state only for processes that have asked for it.
inline bool has_matrix_tiles() {
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return allowed;
}

#endif

}  // namespace native
