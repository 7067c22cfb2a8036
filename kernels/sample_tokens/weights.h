// `reference.py`: from logits to weights.
#pragma once
#include <cmath>

#include "float_bits.h"

namespace {

// Weights as integer-valued floats once truncated: `reference.scaled_weights`.
struct Weighing {
  float peak, inverse_temperature;
  int32_t exponent;  // of the unit

  float score(float x) const {
    float y = (x - peak) * inverse_temperature;
    return y < -87.0f ? -87.0f : y;
  }
  float weight(float x) const {
    float y = score(x);
    float n = std::floor(y * 1.44269504f + 0.5f);
    float r = y - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * float_of(uint32_t(int32_t(n) + 127 + exponent) << 23);
  }
};

}  // namespace
