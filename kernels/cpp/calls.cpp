// Calls of the operations' C functions in a row, with no Python between them.
#include <cstddef>
#include <cstdint>
#include <utility>

namespace {

// As in kernels/noted_calls.py. Pointers are integers here.
constexpr int kWhole = 24, kReal = 4;
struct Call {
  int64_t function;
  int64_t whole[kWhole];
  float real[kReal];
};

// One function type serves for all: x86-64 (System V) and AArch64 pass floats separately from
// integers, and a caller may pass more of them than a function takes.
template <size_t... i, size_t... j>
void make(const Call& call, std::index_sequence<i...>, std::index_sequence<j...>) {
  using Function = void (*)(decltype(int64_t(i))..., decltype(float(j))...);
  ((Function)call.function)(call.whole[i]..., call.real[j]...);
}

}  // namespace

extern "C" void tandem_make_calls(const void* calls, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    make(((const Call*)calls)[i], std::make_index_sequence<kWhole>(),
         std::make_index_sequence<kReal>());
}
