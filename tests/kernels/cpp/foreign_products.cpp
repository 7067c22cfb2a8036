// One product with the instructions of another processor: a file has its arguments and tensors, another
// one gets the result. For an emulator; `test_foreign_products.py` writes and reads the files.
#include <cstdint>
#include <cstdio>
#include <vector>

extern "C" void tandem_linear_packed(int64_t dtype, const void* x, int64_t x_stride,
                                     const void* weight, const float* bias, void* out,
                                     int64_t rows, int64_t inputs, int64_t strips, int64_t outputs,
                                     int64_t fp32_out);
extern "C" void tandem_linear_panels(int64_t dtype, const void* x, int64_t x_stride, int64_t rows,
                                     int64_t blocks, const void* weight, int64_t bits,
                                     int64_t group, int64_t scale_dtype, int64_t has_min,
                                     int64_t offset, int64_t meaning, int64_t int8_activations,
                                     const float* bias, int64_t fp32_out, void* out,
                                     int64_t outputs);

namespace {

// A length in bytes, then the bytes.
std::vector<char> read_bytes(std::FILE* file) {
  int64_t size = 0;
  if (std::fread(&size, sizeof size, 1, file) != 1) return {};
  std::vector<char> bytes(size);
  if (std::fread(bytes.data(), 1, size, file) != size_t(size)) return {};
  return bytes;
}

}  // namespace

int main(int, char** arguments) {
  std::FILE* in = std::fopen(arguments[1], "rb");
  std::vector<char> numbers = read_bytes(in), x = read_bytes(in), weight = read_bytes(in);
  std::vector<char> bias = read_bytes(in), out = read_bytes(in);
  std::fclose(in);
  const int64_t* n = (const int64_t*)numbers.data();
  const float* its_bias = bias.empty() ? nullptr : (const float*)bias.data();
  if (numbers.size() == 7 * sizeof(int64_t))
    tandem_linear_packed(n[0], x.data(), n[1], weight.data(), its_bias, out.data(), n[2], n[3], n[4],
                         n[5], n[6]);
  else
    tandem_linear_panels(n[0], x.data(), n[1], n[2], n[3], weight.data(), n[4], n[5], n[6], n[7],
                         n[8], n[9], n[10], its_bias, n[11], out.data(), n[12]);
  std::FILE* result = std::fopen(arguments[2], "wb");
  bool written = std::fwrite(out.data(), 1, out.size(), result) == out.size();
  return std::fclose(result) == 0 && written ? 0 : 1;
}
