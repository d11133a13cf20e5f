#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the native tests under ASan + UBSan and under TSan and runs them. Usage: run_sanitizers.sh [build directory]
set -eu
root=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$root/build/sanitize}
generator='Unix Makefiles'
if command -v ninja >/dev/null 2>&1; then generator=Ninja; fi

for sanitizers in address,undefined thread; do
    directory=$out/$(echo "$sanitizers" | tr , -)
    cmake -S "$root" -B "$directory" -G "$generator" -DCMAKE_BUILD_TYPE=Release -DLINNET_PYTHON=OFF -DLINNET_TESTS=ON \
        -DLINNET_SANITIZE="$sanitizers"
    cmake --build "$directory" -j 2
    echo "== $sanitizers"
    ctest --test-dir "$directory" --output-on-failure
done
