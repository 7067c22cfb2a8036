// Multiplication of rows by strips of 16 output features: y = x · Wᵀ + bias, the same bits whatever
// the number of rows.
//
// A tile keeps a few rows times a few strips of sums in registers and walks along the inputs in
// their order, one sum per output. The inputs are cut into pieces that stay in a cache, and the sums
// wait in memory as they are, so neither the tile nor the piece that a row falls into changes a bit
// of its result.
//
// Where the strips come from is a template parameter, `Strips`: memory, or weights of few bits that
// are taken apart piece by piece.
#pragma once
#include <algorithm>
#include <vector>

#include "matrix_tiles.h"
#include "native.h"
#include "vec.h"

namespace native::strips {

#if defined(__AVX512F__)
constexpr int kRows = 6, kStrips = 4;  // 24 of 32 registers hold sums
#else
constexpr int kRows = 4, kStrips = 1;  // 8 of 16 registers, a Vec takes two
#endif

// One step along the inputs, for each storage type: what to load of a strip and of a row.
template <class T>
struct Single {
  using X = T;
  static constexpr int kInputs = 1;
  static Vec weights(const X* w) { return load(w); }
  static Vec weights(const Vec* inputs) {
    if constexpr (std::is_same_v<X, float>) return *inputs;
    X rounded[16];
    native::store(rounded, *inputs);
    return load(rounded);
  }
  static void store(X* to, const Vec* inputs) { native::store(to, *inputs); }
  static Vec row(const X* x) { return broadcast(to_float(*x)); }
  static Vec add(Vec sum, Vec w, Vec x) { return multiply_add(w, x, sum); }
};

// Two neighbouring inputs of each output lie side by side.
struct Pairs {
  using X = BFloat16;
  static constexpr int kInputs = 2;
#if defined(__AVX512BF16__)
  static __m512bh weights(const X* w) { return (__m512bh)_mm512_loadu_si512(w); }
  static __m512bh weights(const Vec* inputs) {
    const __m512i turns =
        _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                         21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    __m512bh both = _mm512_cvtne2ps_pbh((__m512)inputs[1], (__m512)inputs[0]);
    return (__m512bh)_mm512_permutexvar_epi16(turns, (__m512i)both);
  }
  static void store(X* to, const Vec* inputs) {
    _mm512_storeu_si512(to, (__m512i)weights(inputs));
  }
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
    Words words = load_words(w);
    return {(Vec)(words << 16), (Vec)(words & 0xffff0000u)};
  }
  static Pair weights(const Vec* inputs) {
    return {(Vec)(rounded(inputs[0]) & 0xffff0000u), (Vec)(rounded(inputs[1]) & 0xffff0000u)};
  }
  static void store(X* to, const Vec* inputs) {
    Words pairs = rounded(inputs[0]) >> 16 | (rounded(inputs[1]) & 0xffff0000u);
    std::memcpy(to, &pairs, sizeof pairs);
  }
  static Pair row(const X* x) {
    return {broadcast(to_float(x[0])), broadcast(to_float(x[1]))};
  }
  static Vec add(Vec sum, Pair w, Pair x) {
    return multiply_add(w.high, x.high, multiply_add(w.low, x.low, sum));
  }

 private:
  // To the nearest bf16, which are the upper halves; not for NaN.
  static Words rounded(Vec x) {
    Words bits = (Words)x;
    return bits + 0x7fff + (bits >> 16 & 1);
  }
#endif
};

// Memory of this thread for numbers of one kind, kept from call to call: new memory would have to
// be found and cleared for every product.
template <class T>
T* scratch(int64_t count) {
  thread_local std::vector<T, AlignedAllocator<T>> memory;
  if (int64_t(memory.size()) < count) memory.resize(count);
  return memory.data();
}

struct Problem {
  const void* x;
  int64_t x_stride;
  const float* bias;
  void* out;
  int64_t rows, inputs, strips, outputs;  // inputs: padded to whole steps
  bool fp32_out;
};

// Some inputs of neighbouring strips: [strips][inputs / kInputs, 16, kInputs], `stride` apart.
template <class X>
struct Piece {
  const X* data;
  int64_t stride;
  bool fetches;  // the next strips lie `strips * stride` further and are to be fetched
};

// Strips that lie in memory as they are multiplied, whole.
template <class X>
class InMemory {
 public:
  InMemory(const void* weight, int64_t inputs) : weight_((const X*)weight), inputs_(inputs) {}

  // Inputs of one piece: all of them if only one tile reads it, else what a second-level cache
  // keeps.
  static int64_t piece_inputs(int64_t strips, bool one_tile) {
    return one_tile ? INT64_MAX : std::max<int64_t>(64, (256 << 10) / (strips * 16 * sizeof(X)));
  }

  Piece<X> piece(int64_t strip, int64_t, int64_t first, int64_t) const {
    return {weight_ + (strip * inputs_ + first) * 16, 16 * inputs_, true};
  }

  // Whether all was done, without pieces.
  bool multiply_few(const Problem&, int64_t, int64_t, int64_t, int64_t) const { return false; }

 private:
  const X* weight_;
  int64_t inputs_;
};

template <class T>
void write(T* out, Vec sums, const float* bias, int64_t columns) {
  if (bias)
    for (int64_t c = 0; c < columns; ++c) sums[c] += bias[c];
  if (columns == 16) return store(out, sums);
  for (int64_t c = 0; c < columns; ++c) out[c] = from_float<T>(sums[c]);
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

// Products of all rows with some strips, piece by piece.
template <class Step>
class Tiles {
  using X = typename Step::X;

 public:
  // For rows first .. last - 1. Unless sums wait for a next piece all tiles use the same few, which
  // stay in the cache.
  Tiles(const Problem& problem, int64_t first, int64_t last)
      : p_(problem), first_(first), rows_(last - first) {}

  bool is_one() const { return rows_ <= kRows; }

  // Adds the products of a piece, steps first_step .. last_step - 1 along the inputs.
  void add(const Piece<X>& weights, int64_t strip, int64_t strips, int64_t first_step,
           int64_t last_step) {
    bool waits = !is_one() && (first_step > 0 || last_step * Step::kInputs < p_.inputs);
    waiting_ = scratch<Vec>(std::max<int64_t>(waits ? rows_ : 0, kRows) * kStrips);
    Part part{weights, 0, 0, strip, first_step, last_step, false};
    with_strips<kStrips>(strips, part, waits);
  }

 private:
  // Part of a tile: where it is, and which steps along the inputs.
  struct Part {
    Piece<X> weights;
    int64_t row, place, strip, step, end;
    bool is_last;
  };

  template <int V>
  void with_strips(int64_t count, Part part, bool waits) {
    if constexpr (V > 1)
      if (count < V) return with_strips<V - 1>(count, part, waits);
    // Tiles of about equal height: a low one reads as many weights as a full one.
    int64_t tiles = (rows_ + kRows - 1) / kRows;
    for (int64_t t = 0; t < tiles; ++t) {
      int64_t place = t * rows_ / tiles, next = (t + 1) * rows_ / tiles;
      part.row = first_ + place;
      part.place = waits ? place : 0;
      part.is_last = t + 1 == tiles;
      with_rows<kRows, V>(next - place, part);
    }
  }

  template <int R, int V>
  void with_rows(int64_t count, const Part& at) {
    if constexpr (R > 1)
      if (count < R) return with_rows<R - 1, V>(count, at);
    run_tile<R, V>(at);
  }

  template <int R, int V>
  void run_tile(const Part& at) {
    Vec* sums = waiting_ + at.place * V;
    const X* x = (const X*)p_.x + at.row * p_.x_stride + at.step * Step::kInputs;
    bool ends = at.end * Step::kInputs == p_.inputs;
    if (at.step == 0) std::fill_n(sums, R * V, Vec{});
    if (ends)
      for (int r = 0; r < R; ++r) fetch_output<X, V>(p_, at.row + r, at.strip);
    int64_t steps = at.end - at.step;
    at.is_last && at.weights.fetches ? walk<R, V, true>(x, at.weights, steps, sums)
                                     : walk<R, V, false>(x, at.weights, steps, sums);
    if (!ends) return;
    for (int r = 0; r < R; ++r)
      for (int v = 0; v < V; ++v)
        finish<X>(p_, at.row + r, at.strip + v, sums[r * V + v]);
  }

  // Adds `steps` products to R rows times V strips of sums, which stay in registers meanwhile.
  // The last tile of a strip fetches the next strips: their start is far from this one's end.
  template <int R, int V, bool fetches>
  void walk(const X* x, Piece<X> given, int64_t steps, Vec* sums) const {
    const X* w = given.data;
    int64_t x_stride = p_.x_stride, w_stride = given.stride;
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
  int64_t first_, rows_;
  Vec* waiting_ = nullptr;
};

template <class Step, class Strips>
class Multiplication {
 public:
  Multiplication(const Problem& problem, const Strips& strips) : p_(problem), strips_(strips) {}

  // Rows first .. last - 1 times strips first_strip .. last_strip - 1.
  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Tiles<Step> tiles(p_, first, last);
    for (int64_t s = first_strip; s < last_strip; s += kStrips) {
      int64_t count = std::min<int64_t>(kStrips, last_strip - s);
      if (strips_.multiply_few(p_, first, last - first, s, count)) continue;
      int64_t piece = std::min(p_.inputs, Strips::piece_inputs(count, tiles.is_one()));
      for (int64_t k = 0; k < p_.inputs; k += piece) {
        int64_t end = std::min(p_.inputs, k + piece);
        tiles.add(strips_.piece(s, count, k, end), s, count, k / Step::kInputs,
                  end / Step::kInputs);
      }
    }
  }

 private:
  Problem p_;
  Strips strips_;
};

#if defined(TANDEM_MATRIX_TILES)
// The same with the matrix unit. A strip's weights are its second operand as they are: 16 pairs of
// inputs times 16 outputs. Sums in tiles 0 .. 3 (rows × strips), rows in 4 and 5, weights in 6 and 7.
template <class Strips>
class TileMultiplication {
  using Weights = Piece<BFloat16>;

 public:
  static constexpr int64_t kInputs = 32;  // of one instruction

  TileMultiplication(const Problem& problem, const Strips& strips) : p_(problem), strips_(strips) {}

  void run(int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    for (int64_t s = first_strip; s < last_strip; s += 2) {
      int64_t count = std::min<int64_t>(2, last_strip - s);
      run_rows(first, last, s, count, strips_.piece(s, count, 0, p_.inputs));
    }
    if (configured_) tile_release();
  }

 private:
  void run_rows(int64_t first, int64_t last, int64_t strip, int64_t strips, Weights weights) {
    for (int64_t row = first; row < last; row += 32) {
      int64_t rows = std::min<int64_t>(32, last - row);
      configure(rows);
      run_tiles(row, rows, strip, strips, weights);
    }
  }

  void configure(int64_t rows) {
    if (rows == configured_) return;
    configured_ = rows;
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) shapes.row_bytes[t] = 64;
    uint8_t upper = uint8_t(std::min<int64_t>(16, rows)), lower = uint8_t(rows - upper);
    for (int t : {0, 1, 4}) shapes.rows[t] = upper;
    // A tile must have a row; the second one is then not used.
    for (int t : {2, 3, 5}) shapes.rows[t] = std::max<uint8_t>(1, lower);
    for (int t : {6, 7}) shapes.rows[t] = 16;
    tile_configure(&shapes);
  }

  void run_tiles(int64_t row, int64_t rows, int64_t strip, int64_t strips, Weights weights) {
    const auto* x = (const BFloat16*)p_.x + row * p_.x_stride;
    const auto* w = weights.data;
    int64_t x_bytes = p_.x_stride * 2;
    tile_zero(0);
    tile_zero(1);
    tile_zero(2);
    tile_zero(3);
    for (int64_t k = 0; k < p_.inputs; k += kInputs) {
      tile_load(4, x + k, x_bytes);
      tile_load(6, w + k * 16, 64);
      tile_add_products(0, 4, 6);
      if (strips > 1) {
        tile_load(7, w + k * 16 + weights.stride, 64);
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
        finish<BFloat16>(p_, row + r, strip + v, sums_[2 * (r / 16) + v][r % 16]);
  }

  Problem p_;
  Strips strips_;
  int64_t configured_ = 0;  // rows
  Vec sums_[4][16];
};
#endif

// Threads share the strips; where there are few of them, the rows, too.
template <class Work>
void share(const Problem& p, const Work& work) {
  if (p.rows == 0) return;
  int64_t threads = num_threads(), parts = std::min(threads, p.strips);
  int64_t row_parts = std::clamp<int64_t>(threads * 4 * kStrips / std::max<int64_t>(1, p.strips), 1,
                                          std::max<int64_t>(1, p.rows / 48));
#pragma omp parallel for collapse(2) schedule(static) \
    if (worth_threads(p.rows * p.inputs * p.outputs / 4))
  for (int64_t i = 0; i < row_parts; ++i)
    for (int64_t j = 0; j < parts; ++j)
      work(i * p.rows / row_parts, (i + 1) * p.rows / row_parts, j * p.strips / parts,
           (j + 1) * p.strips / parts);
}

template <class Work, class Strips>
void multiply_with(const Problem& p, const Strips& strips) {
  share(p, [&](int64_t first, int64_t last, int64_t first_strip, int64_t last_strip) {
    Work(p, strips).run(first, last, first_strip, last_strip);
  });
}

template <class Step, class Strips>
void multiply(const Problem& p, const Strips& strips) {
#if defined(TANDEM_MATRIX_TILES)
  if constexpr (std::is_same_v<Step, Pairs>)
    if (has_matrix_tiles()) return multiply_with<TileMultiplication<Strips>>(p, strips);
#endif
  multiply_with<Multiplication<Step, Strips>>(p, strips);
}

// Calls `function` with a null pointer of the step for a storage type.
template <class Function>
void with_step(int64_t dtype, Function function) {
  if (dtype == kFloat32) function((Single<float>*)nullptr);
  if (dtype == kBFloat16) function((Pairs*)nullptr);
  if (dtype == kFloat16) function((Single<Float16>*)nullptr);
}

}  // namespace native::strips
