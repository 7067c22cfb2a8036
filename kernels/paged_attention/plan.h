// The division of the work among threads.
#pragma once
#include <algorithm>
#include <vector>

#include "native.h"
#include "state.h"
#include "task.h"

namespace {

// Tasks of about equal size, the costliest first. If there are too few for the threads, long
// contexts are cut into segments, whose results are merged afterwards.
struct Plan {
  struct Merge {
    Task task;
    int64_t num_segments;
  };
  std::vector<Task> tasks;
  std::vector<Merge> merges;
  int64_t num_threads, most_rows = 0, saved_floats = 0;

  Plan(const Arguments& a, int64_t width) {
    int64_t work = 0;
    for (int64_t s = 0; s < a.sequences; ++s)
      for (int64_t head = 0; head < a.kv_heads; ++head) {
        int64_t rows = (a.first_rows[s + 1] - a.first_rows[s]) * a.group;
        for (int64_t row = 0; row < rows; row += kMaxRows) {
          tasks.push_back(task(a, s, head, row, std::min(kMaxRows, rows - row)));
          most_rows = std::max(most_rows, tasks.back().num_rows);
          work += cost(tasks.back()) * a.dim;
        }
      }
    num_threads = native::worth_threads(work / 4) ? native::num_threads() : 1;
    if (num_threads > 1 && int64_t(tasks.size()) < 4 * num_threads) cut(width);
    std::stable_sort(tasks.begin(), tasks.end(),
                     [](const Task& x, const Task& y) { return cost(x) > cost(y); });
  }

 private:
  static int64_t cost(const Task& task) { return task.num_rows * (task.end - task.begin); }

  static Task task(const Arguments& a, int64_t s, int64_t head, int64_t row, int64_t num_rows) {
    int64_t first = a.context_lens[s] - (a.first_rows[s + 1] - a.first_rows[s]) + row / a.group;
    int64_t end = a.key_end(s, (row + num_rows - 1) / a.group);
    return {s, head, row, num_rows, a.key_begin(first), end, -1};
  }

  void cut(int64_t width) {
    std::vector<Task> parts;
    for (const Task& task : tasks) {
      int64_t first = task.begin / kSegment, last = divide_up(task.end, kSegment);
      if (last - first == 1) {
        parts.push_back(task);
        continue;
      }
      merges.push_back({task, last - first});
      merges.back().task.saved_at = saved_floats;
      for (int64_t i = first; i < last; ++i) {
        Task part = task;
        part.begin = std::max(task.begin, i * kSegment);
        part.end = std::min(task.end, (i + 1) * kSegment);
        part.saved_at = saved_floats;
        parts.push_back(part);
        saved_floats += State::size(task.num_rows, width);
      }
    }
    tasks = std::move(parts);
  }
};

}  // namespace
