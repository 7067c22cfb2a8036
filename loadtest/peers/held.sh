#!/bin/sh
# Runs a program that sees only the instructions of RUNG; compiles and uses hold_cpuid.c.
#
#   [PRELOAD=library.so] loadtest/peers/held.sh native|x86-64-v3|x86-64-v4|… PROGRAM [ARGUMENT…]
#
# "native" is no restriction. PRELOAD is the LD_PRELOAD of the program itself.
set -eu

rung=$1
shift
[ "$rung" != native ] || exec env LD_PRELOAD="${PRELOAD:-}" "$@"

source=$(dirname "$0")/hold_cpuid.c
library=${PEERS_DIR:-$HOME/.cache/peers}/hold_cpuid.so
if [ ! "$library" -nt "$source" ]; then
  "${CC:-cc}" -O2 -shared -fPIC -o "$library.$$" "$source" -ldl
  mv "$library.$$" "$library"
fi
exec env HOLD_CPUID="$rung" LD_PRELOAD="$library${PRELOAD:+:$PRELOAD}" "$@"
