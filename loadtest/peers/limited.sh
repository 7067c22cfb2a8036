#!/bin/sh
# Asks a program's libraries to use RUNG's instructions only. For processors that cannot trap CPUID,
# where held.sh stops: scenarios take it with --set HELD=loadtest/peers/limited.sh.
#
#   loadtest/peers/limited.sh native|x86-64-v3|x86-64-v4|… PROGRAM [ARGUMENT…]
#
# PyTorch, oneDNN and MKL obey these variables; other code does not know them. llama.cpp is compiled
# for the rung, and Tandem obeys TANDEM_CPU_ISA. OpenVINO fails with a restricted oneDNN.
set -eu

rung=$1
shift
case $rung in
  native) exec "$@" ;;
  x86-64-v3) aten=avx2 onednn=AVX2 mkl=AVX2 ;;
  x86-64-v3-vnni) aten=avx2 onednn=AVX2_VNNI mkl=AVX2 ;;
  x86-64-v4) aten=avx512 onednn=AVX512_CORE mkl=AVX512 ;;
  x86-64-v4-vnni) aten=avx512 onednn=AVX512_CORE_VNNI mkl=AVX512 ;;
  x86-64-v4-bf16) aten=avx512 onednn=AVX512_CORE_BF16 mkl=AVX512 ;;
  *) sed -n '2,5p' "$0" >&2; exit 2 ;;
esac
exec env ATEN_CPU_CAPABILITY=$aten ONEDNN_MAX_CPU_ISA=$onednn MKL_ENABLE_INSTRUCTIONS=$mkl "$@"
