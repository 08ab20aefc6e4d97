"""Loads each GGUF file in unmodified llama.cpp and prints its greedy continuation of a prompt.

usage: load_llama_cpp.py PROMPT FILE.gguf [FILE.gguf ...]     (needs the PyPI package xllamacpp)
"""
import json
import sys

import xllamacpp

for path in sys.argv[2:]:
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = 512
    params.sampling.temp = 0
    params.warmup = False
    reply = xllamacpp.Server(params).handle_completions({"prompt": sys.argv[1], "max_tokens": 40, "temperature": 0})
    reply = reply if isinstance(reply, dict) else json.loads(reply)
    print(f"RESULT {path}: {reply['choices'][0]['text']!r}", flush=True)
