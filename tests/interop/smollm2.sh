#!/usr/bin/env bash
# Converts a real checkpoint to several types, compares every tensor with what llama.cpp's own programs make of it, and loads each file in
# unmodified llama.cpp.
#
# usage: smollm2.sh MODEL_DIR LLAMA_CPP_DIR PYTHON [PRETOKENIZER]
#   LLAMA_CPP_DIR  holds src/ (with convert_hf_to_gguf.py) and bin/ (llama-quantize)
#   PYTHON         an interpreter with gguf, numpy, torch, transformers (for the converter) and xllamacpp
set -euo pipefail
model=$1 llama=$2 python=$3 pre=${4:-smollm}
here=$(cd "$(dirname "$0")" && pwd)
quantize=${QUANTIZE:-$here/../../target/release/quantize}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
types="Q8_0 Q6_K Q5_K_S Q4_K_M Q4_0 Q3_K_M Q2_K"

"$quantize" --to "f16,$(echo $types | tr ' ' ,)" "$model" -o "$work/{type}.gguf" --quiet > /dev/null
"$python" "$here/peer_convert.py" "$llama/src" "$pre" "$model" --outfile "$work/peer-F16.gguf" --outtype f16 2> /dev/null
"$python" "$here/compare_gguf.py" "$work/F16.gguf" "$work/peer-F16.gguf" --metadata
for type in $types; do
  "$llama/bin/llama-quantize" "$work/peer-F16.gguf" "$work/peer.gguf" "$type" > /dev/null 2>&1
  "$python" "$here/compare_gguf.py" "$work/$type.gguf" "$work/peer.gguf"
done
"$python" "$here/load_llama_cpp.py" "The capital of France is" "$work"/[FQ]*.gguf 2> /dev/null | grep -a RESULT
