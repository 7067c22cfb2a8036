// Tokens that may still be kept, by id: found in a row, and cut by number or by mass.
#pragma once
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstdint>
#include <functional>
#include <vector>

#include "float_bits.h"
#include "noise.h"

namespace {

inline int64_t needed_mass(double share, int64_t total) {
  double needed = std::min(std::ceil(share * double(total)), double(total));
  return std::max<int64_t>(1, std::min(int64_t(needed), total));
}

struct Candidates {
  int32_t* ids;
  int32_t* keys;
  int64_t* masses;
  int64_t size = 0;

  // Keep from the greatest key down, equals by id, until `needed` is reached.
  void cut(int64_t needed, bool by_mass, bool ties_stay) {
    int32_t key = last_key(needed, by_mass);
    int64_t above = 0, tie_mass = 0;
    for (int64_t i = 0; i < size; ++i) {
      int64_t worth = by_mass ? masses[i] : 1;
      above += worth & -int64_t(keys[i] > key);
      tie_mass |= worth & -int64_t(keys[i] == key);  // equal keys have equal masses
    }
    int64_t ties = ties_stay ? size : (needed - above + tie_mass - 1) / tie_mass;
    keep_if([&](int64_t i) {
      bool is_tie = keys[i] == key, stays = is_tie & (ties > 0);
      ties -= is_tie;
      return keys[i] > key || stays;
    });
  }

  template <class Function>
  void keep_if(Function keeps) {
    int64_t kept = 0;
    for (int64_t i = 0; i < size; ++i) {
      bool stays = keeps(i);
      ids[kept] = ids[i];
      keys[kept] = keys[i];
      masses[kept] = masses[i];
      kept += stays;
    }
    size = kept;
  }

  int64_t total() const {
    int64_t sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += masses[i];
    return sum;
  }

 private:
  // Bisects the keys. Each round moves a border to a key that exists, so that few rounds follow
  // once few keys are left.
  int32_t last_key(int64_t needed, bool by_mass) const {
    const int64_t num = size;
    const int32_t* key = keys;
    const int64_t* mass = masses;
    int32_t low = INT_MAX, high = INT_MIN;
    for (int64_t i = 0; i < num; ++i) {
      low = std::min(low, key[i]);
      high = std::max(high, key[i]);
    }
    while (low < high) {
      int32_t middle = int32_t(low + (int64_t(high) - low + 1) / 2);
      int64_t reached = 0;
      int32_t above = INT_MAX, below = INT_MIN;
#pragma omp simd reduction(min : above) reduction(max : below)
      for (int64_t i = 0; i < num; ++i) {
        int32_t up = key[i] >= middle ? key[i] : INT_MAX;
        int32_t down = key[i] >= middle ? INT_MIN : key[i];
        above = up < above ? up : above;
        below = down > below ? down : below;
      }
      for (int64_t i = 0; i < num; ++i) {
        int64_t worth = by_mass ? mass[i] : 1;
        reached += worth & -int64_t(key[i] >= middle);
      }
      if (reached >= needed) low = above;
      else high = below;
    }
    return low;
  }
};

// The places where x >= bound, ascending.
int64_t collect(const float* x, int64_t size, float bound, int32_t* ids) {
  int64_t found = 0, i = 0;
  for (; i + kBlock <= size; i += kBlock) {
    int32_t any = 0;
    for (int j = 0; j < kBlock; ++j) any |= x[i + j] >= bound ? 1 : 0;
    if (!any) continue;
    for (int j = 0; j < kBlock; ++j) {
      ids[found] = int32_t(i + j);
      found += x[i + j] >= bound;
    }
  }
  for (; i < size; ++i) {
    ids[found] = int32_t(i);
    found += x[i] >= bound;
  }
  return found;
}

// A value that at least k of the x reach: the k-th of the maxima of at least 4 * k disjoint groups.
float top_k_bound(const float* x, int64_t size, int64_t k, std::vector<float>& maxima) {
  constexpr int64_t kGroups = 64;
  int64_t group_size = std::min<int64_t>(64, size / (4 * k));
  if (group_size < 2) return -kInfinity;
  maxima.clear();
  for (int64_t start = 0; start < size; start += group_size * kGroups) {
    int64_t length = std::min(group_size * kGroups, size - start);
    float most[kGroups];
    for (int j = 0; j < kGroups; ++j) most[j] = -kInfinity;
    for (int64_t i = 0; i + kGroups <= length; i += kGroups)
      for (int j = 0; j < kGroups; ++j) {
        float value = x[start + i + j];
        most[j] = value > most[j] ? value : most[j];
      }
    maxima.insert(maxima.end(), most, most + kGroups);
  }
  if (k > int64_t(maxima.size())) return -kInfinity;
  std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<float>());
  return maxima[k - 1];
}

}  // namespace
