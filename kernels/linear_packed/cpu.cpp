// Multiplication by packed weights: y = x · Wᵀ + bias, the same bits whatever the number of rows.
//
// Weights lie in strips of 16 output features (`PackedWeight`). A tile keeps a few rows times a few
// strips of sums in registers and walks along the inputs in their order, one sum per output. Large
// inputs are cut into pieces that stay in the cache, and the sums wait in memory as they are, so
// neither the tile nor the piece that a row falls into changes a bit of its result.
#include <algorithm>
#include <vector>

#include "matrix_tiles.h"
#include "native.h"
#include "vec.h"

namespace {

using native::Vec;

#if defined(__AVX512F__)
constexpr int kRows = 6, kStrips = 4;  // 24 of 32 registers hold sums
#else
constexpr int kRows = 4, kStrips = 1;  // 8 of 16 registers, a Vec takes two
#endif
constexpr int64_t kPieceBytes = 256 << 10;  // of a tile's strips: what a second-level cache keeps

// One step along the inputs, for each storage type: what to load of a strip and of a row.
template <class T>
struct Single {
  using X = T;
  static constexpr int kInputs = 1;
  static Vec weights(const X* w) { return native::load(w); }
  static Vec row(const X* x) { return native::broadcast(native::to_float(*x)); }
  static Vec add(Vec sum, Vec w, Vec x) { return native::multiply_add(w, x, sum); }
};

// Two neighbouring inputs of each output lie side by side.
struct Pairs {
  using X = native::BFloat16;
  static constexpr int kInputs = 2;
#if defined(__AVX512BF16__)
  static __m512bh weights(const X* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static __m512bh row(const X* x) {
    int32_t pair;
    std::memcpy(&pair, x, 4);
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static Vec add(Vec sum, __m512bh w, __m512bh x) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, w, x);
  }
#else
  struct Pair {
    Vec low, high;
  };
  static Pair weights(const X* w) {
    native::Words words = native::load_words(w);
    return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
  }
  static Pair row(const X* x) {
    return {native::broadcast(native::to_float(x[0])), native::broadcast(native::to_float(x[1]))};
  }
  static Vec add(Vec sum, Pair w, Pair x) {
    return native::multiply_add(w.high, x.high, native::multiply_add(w.low, x.low, sum));
  }
#endif
};

struct Problem {
  const void* x;
  int64_t x_stride;
  const void* weight;
  const float* bias;
  void* out;
  int64_t rows, inputs, strips, outputs;  // inputs: padded to whole steps
  bool fp32_out;
};

template <class T>
void write(T* out, Vec sums, const float* bias, int64_t columns) {
  if (bias)
    for (int64_t c = 0; c < columns; ++c) sums[c] += bias[c];
  if (columns == 16) return native::store(out, sums);
  for (int64_t c = 0; c < columns; ++c) out[c] = native::from_float<T>(sums[c]);
}

// One row's 16 sums of a strip are complete.
template <class X>
void finish(const Problem& p, int64_t row, int64_t strip, Vec sums) {
  int64_t at = strip * 16, columns = std::min<int64_t>(16, p.outputs - at);
  const float* bias = p.bias ? p.bias + at : nullptr;
  if (p.fp32_out) return write((float*)p.out + row * p.outputs + at, sums, bias, columns);
  write((X*)p.out + row * p.outputs + at, sums, bias, columns);
}

// Results go to memory that nobody has read lately: it is on its way while they are computed.
template <class X, int strips>
void fetch_output(const Problem& p, int64_t row, int64_t strip) {
  int64_t size = p.fp32_out ? sizeof(float) : sizeof(X);
  const char* out = (const char*)p.out + (row * p.outputs + strip * 16) * size;
  for (int64_t at = 0; at < strips * 16 * size; at += 64) __builtin_prefetch(out + at, 1);
}

template <class Step>
class Multiplication {
  using X = typename Step::X;

 public:
  explicit Multiplication(const Problem& problem) : p_(problem), steps_(p_.inputs / Step::kInputs) {}

  // Rows first .. last - 1 times strips first_strip .. last_strip - 1.
  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    for (int64_t s = first_strip; s < last_strip; s += kStrips)
      with_strips<kStrips>(std::min<int64_t>(kStrips, last_strip - s), first, last, s);
  }

 private:
  // Part of a tile: where it is, and which steps along the inputs.
  struct Piece {
    int64_t row, place, strip, step, end;
    bool is_last;
  };

  template <int V>
  void with_strips(int64_t count, int64_t first, int64_t last, int64_t strip) {
    if constexpr (V > 1)
      if (count < V) return with_strips<V - 1>(count, first, last, strip);
    run_strips<V>(first, last, strip);
  }

  template <int V>
  void run_strips(int64_t first, int64_t last, int64_t strip) {
    int64_t piece = steps_;
    if (last - first > kRows)
      piece = std::max<int64_t>(64, kPieceBytes / (V * kStep * int64_t(sizeof(X))));
    // Without pieces a tile's sums never wait: all tiles use the same few, which stay in the cache.
    bool waits = piece < steps_;
    waiting_.resize((waits ? last - first : kRows) * V);
    // Tiles of about equal height: a low one reads as many weights as a full one.
    int64_t rows = last - first, tiles = (rows + kRows - 1) / kRows;
    for (int64_t k = 0; k < steps_; k += piece)
      for (int64_t t = 0; t < tiles; ++t) {
        int64_t place = t * rows / tiles, next = (t + 1) * rows / tiles;
        Piece at{first + place, waits ? place : 0, strip, k, std::min(steps_, k + piece),
                 t + 1 == tiles};
        with_rows<kRows, V>(next - place, at);
      }
  }

  template <int R, int V>
  void with_rows(int64_t count, const Piece& at) {
    if constexpr (R > 1)
      if (count < R) return with_rows<R - 1, V>(count, at);
    run_tile<R, V>(at);
  }

  template <int R, int V>
  void run_tile(const Piece& at) {
    Vec* sums = waiting_.data() + at.place * V;
    const X* x = (const X*)p_.x + at.row * p_.x_stride + at.step * Step::kInputs;
    const X* w = (const X*)p_.weight + at.strip * 16 * p_.inputs + at.step * kStep;
    if (at.step == 0) std::fill_n(sums, R * V, Vec{});
    if (at.end == steps_)
      for (int r = 0; r < R; ++r) fetch_output<X, V>(p_, at.row + r, at.strip);
    int64_t steps = at.end - at.step;
    at.is_last ? walk<R, V, true>(x, w, steps, sums) : walk<R, V, false>(x, w, steps, sums);
    if (at.end < steps_) return;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        finish<X>(p_, at.row + r, at.strip + v, sums[r * V + v]);
  }

  // Adds `steps` products to R rows times V strips of sums, which stay in registers meanwhile.
  // The last tile of a strip fetches the next strips: their start is far from this one's end.
  template <int R, int V, bool fetches>
  void walk(const X* x, const X* w, int64_t steps, Vec* sums) const {
    int64_t x_stride = p_.x_stride, w_stride = 16 * p_.inputs;
    Vec sum[R][V];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[r][v] = sums[r * V + v];
    for (int64_t i = 0; i < steps; ++i, x += Step::kInputs, w += kStep) {
      decltype(Step::weights(w)) weights[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) weights[v] = Step::weights(w + v * w_stride);
      if (fetches)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) __builtin_prefetch(w + (V + v) * w_stride, 0, 2);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        auto value = Step::row(x + r * x_stride);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[r][v] = Step::add(sum[r][v], weights[v], value);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sums[r * V + v] = sum[r][v];
  }

  static constexpr int64_t kStep = 16 * Step::kInputs;  // elements of a strip

  Problem p_;
  int64_t steps_;
  std::vector<Vec, native::AlignedAllocator<Vec>> waiting_;
};

#if defined(TANDEM_MATRIX_TILES)
// The same with the matrix unit. A strip's weights are its second operand as they are: 16 pairs of
// inputs times 16 outputs. Sums in tiles 0 .. 3 (rows × strips), rows in 4 and 5, weights in 6 and 7.
class TileMultiplication {
 public:
  static constexpr int64_t kInputs = 32;  // of one instruction

  explicit TileMultiplication(const Problem& problem) : p_(problem) {}

  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    for (int64_t row = first; row < last; row += 32) {
      int64_t rows = std::min<int64_t>(32, last - row);
      configure(rows);
      for (int64_t s = first_strip; s < last_strip; s += 2)
        run_tiles(row, rows, s, std::min<int64_t>(2, last_strip - s));
    }
    tile_release();
  }

 private:
  void configure(int64_t rows) {
    native::TileShapes shapes;
    for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = 64;
    uint8_t upper = uint8_t(std::min<int64_t>(16, rows)), lower = uint8_t(rows - upper);
    for (int t : {0, 1, 4}) shapes.rows[t] = upper;
    // A tile must have a row; the second one is then not used.
    for (int t : {2, 3, 5}) shapes.rows[t] = std::max<uint8_t>(1, lower);
    for (int t : {6, 7}) shapes.rows[t] = 16;
    tile_configure(&shapes);
  }

  void run_tiles(int64_t row, int64_t rows, int64_t strip, int64_t strips) {
    const auto* x = (const native::BFloat16*)p_.x + row * p_.x_stride;
    const auto* w = (const native::BFloat16*)p_.weight + strip * 16 * p_.inputs;
    int64_t x_bytes = p_.x_stride * 2, w_stride = 16 * p_.inputs;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int64_t k = 0; k < p_.inputs; k += kInputs) {
      tile_load(4, x + k, x_bytes);
      tile_load(6, w + k * 16, 64);
      tile_add_products(0, 4, 6);
      if (strips > 1) {
        tile_load(7, w + k * 16 + w_stride, 64);
        tile_add_products(1, 4, 7);
      }
      if (rows > 16) {
        tile_load(5, x + k + 16 * p_.x_stride, x_bytes);
        tile_add_products(2, 5, 6);
        if (strips > 1) tile_add_products(3, 5, 7);
      }
    }
    tile_store(0, sums_[0], 64);
    tile_store(1, sums_[1], 64);
    tile_store(2, sums_[2], 64);
    tile_store(3, sums_[3], 64);
    for (int64_t v = 0; v < strips; ++v)
      for (int64_t r = 0; r < rows; ++r)
        finish<native::BFloat16>(p_, row + r, strip + v, sums_[2 * (r / 16) + v][r % 16]);
  }

  Problem p_;
  Vec sums_[4][16];
};
#endif

// Threads share the strips; where there are few of them, the rows, too.
template <class Work>
void share(const Problem& p, const Work& work) {
  int64_t threads = native::num_threads(), parts = std::min(threads, p.strips);
  int64_t row_parts = std::clamp<int64_t>(threads * 4 * kStrips / std::max<int64_t>(1, p.strips), 1,
                                          std::max<int64_t>(1, p.rows / 48));
#pragma omp parallel for collapse(2) schedule(static) \
    if (native::worth_threads(p.rows * p.inputs * p.outputs / 4))
  for (int64_t i = 0; i < row_parts; ++i)
    for (int64_t j = 0; j < parts; ++j)
      work(i * p.rows / row_parts, (i + 1) * p.rows / row_parts, j * p.strips / parts,
           (j + 1) * p.strips / parts);
}

template <class Work>
void multiply(const Problem& p) {
  share(p, [&](int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Work(p).run(first, last, first_strip, last_strip);
  });
}

}  // namespace

extern "C" void tandem_linear_packed(int64_t dtype, const void* x, int64_t x_stride,
                                     const void* weight, const float* bias, void* out,
                                     int64_t rows, int64_t inputs, int64_t strips, int64_t outputs,
                                     int64_t fp32_out) {
  Problem p{x, x_stride, weight, bias, out, rows, inputs, strips, outputs, fp32_out != 0};
  if (dtype == native::kFloat32) return multiply<Multiplication<Single<float>>>(p);
  if (dtype == native::kFloat16) return multiply<Multiplication<Single<native::Float16>>>(p);
#if defined(TANDEM_MATRIX_TILES)
  if (native::has_matrix_tiles()) return multiply<TileMultiplication>(p);
#endif
  multiply<Multiplication<Pairs>>(p);
}
