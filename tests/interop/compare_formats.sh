#!/usr/bin/env bash
# Rounding to nearest against the tools that each checkpoint format comes from, byte by byte.
# usage: compare_formats.sh SOURCE_DIR WORK_DIR
#   SOURCE_DIR  a checkpoint in one model.safetensors whose rows are multiples of 64 (SmolLM2-135M)
#   WORK_DIR    gets the tools' folders; those that are there already are used as they are
#   LLMCOMPRESSOR, BITSANDBYTES, MLX  the Python interpreters that have llmcompressor 0.14, bitsandbytes 0.50, mlx-lm 0.32
set -eu
source=$(cd "$1" && pwd); mkdir -p "$2"; work=$(cd "$2" && pwd); here=$(cd "$(dirname "$0")" && pwd)
make_lc() { [ -d "$work/$1" ] || "$LLMCOMPRESSOR" "$here/make_formats.py" llmcompressor "$1" "$source" "$work/$1"; }
make_bnb() { [ -d "$work/$1" ] || "$BITSANDBYTES" "$here/make_formats.py" bitsandbytes "$1" "$source" "$work/$1"; }
make_mlx() { name=$1; shift; [ -d "$work/$name" ] || "$MLX" -m mlx_lm convert --hf-path "$source" --mlx-path "$work/$name" -q "$@"; }

failed=0
same() { # SPEC FOLDER [MISSES]
  PEER_SPEC=$1 PEER_SOURCE=$source PEER_FOLDER=$work/$2 PEER_MISSES=${3:-0} \
    cargo test --quiet --release --test peers packed -- --ignored --nocapture | grep -E 'tensors,|from [0-9]' || failed=1
  [ "${PIPESTATUS[0]}" = 0 ] || { echo "$1: not the same bytes"; failed=1; }
}

if [ -n "${LLMCOMPRESSOR:-}" ]; then
  for kind in w4a16-64g w4a16-64g-asym w8a16 fp8 fp8-static int8 nvfp4a16 nvfp4 mxfp4; do make_lc $kind; same $kind $kind; done
fi
if [ -n "${BITSANDBYTES:-}" ]; then
  for kind in nf4 fp4 bnb-int8; do make_bnb $kind; same $kind $kind; done
  # The mean of all block scales, which torch adds up in an order that depends on the processor, differs in its last bit.
  for kind in nf4-dq fp4-dq; do make_bnb $kind; same $kind $kind 0.1; done
fi
if [ -n "${MLX:-}" ]; then
  for bits in 2 3 4 5 6 8; do make_mlx mlx-${bits}bit --q-bits $bits --q-group-size 64; same mlx-${bits}bit mlx-${bits}bit; done
  make_mlx mlx-4bit-32g --q-bits 4 --q-group-size 32; same mlx-4bit-32g mlx-4bit-32g
  for mode in mxfp4 nvfp4 mxfp8; do make_mlx mlx-$mode --q-mode $mode; same mlx-$mode mlx-$mode; done
fi
exit $failed
