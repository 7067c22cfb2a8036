#!/bin/sh
# Runs a program that sees the instructions of RUNG only; see hold_cpuid.c, which it compiles.
#
#   [PRELOAD=library.so] loadtest/peers/held.sh native|x86-64-v3|x86-64-v4|… PROGRAM [ARGUMENT…]
#
# "native" holds nothing. PRELOAD is what LD_PRELOAD would be for the program itself.
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
