// Group normalisation of channels-last maps, with an optional SiLU.
//
// Means and squared deviations are computed per channel over short runs of cells and combined with
// Chan's formula (Chan, Golub and LeVeque 1983): as exact as two passes over the map, and the order
// of the sums depends on the map's size alone.
#include "pieces.h"

#include <algorithm>
#include <vector>

namespace {

constexpr int64_t kRun = 64;  // Cells; with 320 channels they fit the first-level cache.

struct Map {
  int64_t cells, channels, groups;
  int64_t runs() const { return (cells + kRun - 1) / kRun; }
  int64_t length(int64_t run) const { return std::min(kRun, cells - run * kRun); }
};

// Computes the mean of each channel over `cells` cells, and the sum of squared deviations from it.
template <class T>
void measure(const T* x, int64_t cells, int64_t channels, float* mean, float* deviation) {
  std::fill_n(mean, channels, 0.0f);
  std::fill_n(deviation, channels, 0.0f);
  for (int64_t i = 0; i < cells; ++i)
    for (int64_t c = 0; c < channels; ++c) mean[c] += native::to_float(x[i * channels + c]);
  for (int64_t c = 0; c < channels; ++c) mean[c] /= float(cells);
  for (int64_t i = 0; i < cells; ++i)
    for (int64_t c = 0; c < channels; ++c) {
      float distance = native::to_float(x[i * channels + c]) - mean[c];
      deviation[c] += distance * distance;
    }
}

// Turns the statistics of a row's runs into a factor and a summand for each channel.
template <class T>
void fold(const Map& map, const float* means, const float* deviations, const T* weight,
          const T* bias, float eps, float* factor, float* summand) {
  int64_t width = map.channels / map.groups;
  for (int64_t g = 0; g < map.groups; ++g) {
    float count = float(map.cells * width), mean = 0, square = 0;
    for (int64_t run = 0; run < map.runs(); ++run)
      for (int64_t c = g * width; c < (g + 1) * width; ++c)
        mean += means[run * map.channels + c] * (float(map.length(run)) / count);
    for (int64_t run = 0; run < map.runs(); ++run)
      for (int64_t c = g * width; c < (g + 1) * width; ++c) {
        float distance = means[run * map.channels + c] - mean;
        square += deviations[run * map.channels + c] +
                  float(map.length(run)) * distance * distance;
      }
    float scale = 1.0f / std::sqrt(square / count + eps);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      factor[c] = native::to_float(weight[c]) * scale;
      summand[c] = native::to_float(bias[c]) - mean * factor[c];
    }
  }
}

template <bool silu, class T>
void apply(const T* x, T* out, int64_t cells, int64_t channels, const float* factor,
           const float* summand) {
  for (int64_t i = 0; i < cells; ++i) {
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) {
      float y = native::to_float(x[i * channels + c]) * factor[c] + summand[c];
      out[i * channels + c] = native::from_float<T>(silu ? y * native::sigmoid(y) : y);
    }
  }
}

template <class T>
void normalise(const T* x, const T* weight, const T* bias, T* out, int64_t rows, const Map& map,
               float eps, bool silu) {
  int64_t runs = map.runs(), tasks = rows * runs, row_size = map.cells * map.channels;
  std::vector<float> means(tasks * map.channels), deviations(tasks * map.channels);
  std::vector<float> factors(rows * map.channels), summands(rows * map.channels);
  native::for_ranges(tasks, rows * row_size, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t row = task / runs, run = task % runs;
      measure(x + row * row_size + run * kRun * map.channels, map.length(run), map.channels,
              &means[task * map.channels], &deviations[task * map.channels]);
    }
  });
  native::for_ranges(rows, tasks * map.channels, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      int64_t first = row * runs * map.channels;
      fold(map, &means[first], &deviations[first], weight, bias, eps,
           &factors[row * map.channels], &summands[row * map.channels]);
    }
  });
  native::for_ranges(tasks, rows * row_size, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      int64_t row = task / runs, run = task % runs;
      int64_t first = row * row_size + run * kRun * map.channels;
      (silu ? apply<true, T> : apply<false, T>)(x + first, out + first, map.length(run),
                                                map.channels, &factors[row * map.channels],
                                                &summands[row * map.channels]);
    }
  });
}

}  // namespace

extern "C" void tandem_group_norm_silu(int64_t dtype, const void* x, const void* weight,
                                       const void* bias, void* out, int64_t rows, int64_t cells,
                                       int64_t channels, int64_t groups, float eps,
                                       int64_t silu) {
  native::with_type(dtype, [&](auto* tag) {
    using T = std::remove_pointer_t<decltype(tag)>;
    normalise((const T*)x, (const T*)weight, (const T*)bias, (T*)out, rows,
              Map{cells, channels, groups}, eps, silu != 0);
  });
}
