"""Runs llama.cpp's own convert_hf_to_gguf.py with the pre-tokenizer named on the command line.

The converter recognises pre-tokenizers by a hash of what they do to a test text and refuses the rest; a checkpoint rebuilt from
another package can carry an equivalent tokenizer that hashes differently.

usage: peer_convert.py LLAMA_CPP_SOURCE PRETOKENIZER [convert_hf_to_gguf.py arguments]
"""
import runpy
import sys

source, pre = sys.argv[1:3]
sys.path[:0] = [source, source + "/gguf-py"]
import conversion.base  # noqa: E402

conversion.base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
sys.argv = [source + "/convert_hf_to_gguf.py", *sys.argv[3:]]
runpy.run_path(sys.argv[0], run_name="__main__")
