#!/usr/bin/env bash
# Builds the fuzz target with the stable toolchain: coverage by LLVM's own pass, overflow checks and debug assertions on.
# CARGO names another cargo, CARGO_TARGET_DIR another place for what is built.
set -eu
cd "$(dirname "$0")"
host=$(rustc -vV | sed -n 's/^host: //p')
flags="--cfg fuzzing -Ccodegen-units=4 -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
for part in inline-8bit-counters pc-table trace-compares; do
    flags+=" -Cllvm-args=-sanitizer-coverage-$part"
done
# With a target named, build scripts and macros are not instrumented.
RUSTFLAGS="$flags" exec "${CARGO:-cargo}" build --release --target "$host" "$@"
