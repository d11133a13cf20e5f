#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Cross-compiles the native tests for AArch64 and runs them under qemu-user. Usage: run_aarch64.sh [build directory]
# Needs aarch64-linux-gnu-g++ (or CXX_AARCH64) and qemu-aarch64; Debian: g++-aarch64-linux-gnu, qemu-user.
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build/aarch64}
generator='Unix Makefiles'
if command -v ninja >/dev/null 2>&1; then generator=Ninja; fi

cmake -S "$root" -B "$out" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DLINNET_PYTHON=OFF -DLINNET_TESTS=ON \
    -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_CXX_COMPILER="${CXX_AARCH64:-aarch64-linux-gnu-g++}" \
    -DCMAKE_CROSSCOMPILING_EMULATOR="qemu-aarch64;-cpu;max;-L;/usr/aarch64-linux-gnu"
cmake --build "$out" -j 2
LINNET_FUZZ_TRIALS=${LINNET_FUZZ_TRIALS:-5} ctest --test-dir "$out" --output-on-failure
