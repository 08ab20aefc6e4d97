"""Logits of unmodified llama.cpp for the small models of tests/golden/families, whose weights a generator makes: the data of
tests/golden/logits.json, beside which the library's own forward pass is held.

usage: family_logits.py QUANTIZE GOLDENS NAME...     (prints JSON; needs numpy and the package llama_cpp)

Each model becomes an F32 file by QUANTIZE and runs in a process of its own, since libllama ends it where it does not like a file.
Of 16 tokens the logits of the last one are kept, of an encoder its last hidden state.
"""
import ctypes
import json
import os
import subprocess
import sys
import tempfile

import numpy as np

TOKENS = [(37 * i * i + 11 * i + 5) % 300 + 10 for i in range(16)]


def restore(goldens, name, out):
    """The checkpoint of a golden."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "family_goldens.py")
    source = open(script, encoding="utf-8").read().split("command, source, out")[0]
    shared = {}
    exec(compile(source, script, "exec"), shared)
    golden = json.load(open(os.path.join(goldens, name + ".json"), encoding="utf-8"))
    for path, stored in golden["files"].items():
        to = os.path.join(out, path)
        os.makedirs(os.path.dirname(to), exist_ok=True)
        with open(to, "wb") as f, open(os.path.join(goldens, "files", stored), "rb") as kept:
            f.write(kept.read())
    for path, tensors in golden["weights"].items():
        head, data = {}, b""
        for tensor, (dtype, shape, *kept) in tensors.items():
            raw = np.array(kept[0], "<i8").tobytes() if kept else shared["values"](tensor, dtype, shape)
            head[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
            data += raw
        text = json.dumps(head).encode()
        text += b" " * (-len(text) % 8)
        with open(os.path.join(out, path), "wb") as f:
            f.write(len(text).to_bytes(8, "little") + text + data)
    return golden


def run(file, encodes):
    import llama_cpp.llama_cpp as L

    L.llama_backend_init()
    mp = L.llama_model_default_params()
    mp.n_gpu_layers, mp.use_extra_bufts = 0, False
    model = L.llama_model_load_from_file(file.encode(), mp)
    cp = L.llama_context_default_params()
    cp.n_ctx = cp.n_batch = cp.n_ubatch = 64
    cp.n_threads = cp.n_threads_batch = 1
    cp.flash_attn_type, cp.type_k, cp.type_v, cp.swa_full, cp.embeddings = 0, 0, 0, True, encodes
    if encodes:
        cp.pooling_type, cp.attention_type = 0, 1
    context = L.llama_init_from_model(model, cp)
    L.llama_set_embeddings(context, encodes)
    batch = L.llama_batch_init(len(TOKENS), 0, 1)
    batch.n_tokens = len(TOKENS)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
        batch.seq_id[i][0] = 0
    assert L.llama_decode(context, batch) == 0
    width = L.llama_model_n_embd(model) if encodes else L.llama_vocab_n_tokens(L.llama_model_get_vocab(model))
    read = L.llama_get_embeddings_ith if encodes else L.llama_get_logits_ith
    row = np.ctypeslib.as_array(read(context, len(TOKENS) - 1), (width,))
    print("ROW", json.dumps([float(f"{x:.7g}") for x in row]))


def main():
    if sys.argv[1] == "--one":
        return run(sys.argv[2], sys.argv[3] == "1")
    binary, goldens, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    found = {}
    for name in names:
        with tempfile.TemporaryDirectory() as out:
            folder, file = os.path.join(out, name), os.path.join(out, "made.gguf")
            os.makedirs(folder)
            meta = restore(goldens, name, folder)["metadata"]
            pre = meta.get("tokenizer.ggml.pre", [0, "default"])[1]
            pre = [] if pre == "default" else ["--pretokenizer", pre]
            made = subprocess.run([binary, "--to", "f32", folder, "-o", file, "--quiet", *pre], capture_output=True, text=True)
            if made.returncode:
                print(f"{name}: {made.stderr.strip()[:300]}", file=sys.stderr)
                continue
            arch = meta["general.architecture"][1]
            encodes = arch == "llama-embed" or meta.get(arch + ".attention.causal", [0, True])[1] is False
            done = subprocess.run([sys.executable, __file__, "--one", file, str(int(encodes))], capture_output=True, text=True)
            rows = [line[4:] for line in done.stdout.splitlines() if line.startswith("ROW ")]
            if rows:
                found[name] = json.loads(rows[0])
            else:
                print(f"{name}: llama.cpp ends with {done.returncode}: {done.stderr.strip()[-300:]}", file=sys.stderr)
    one = lambda x: json.dumps(x, separators=(",", ":"))
    print("{\n" + ",\n".join(f"{one(k)}:{one(v)}" for k, v in found.items()) + "\n}")


if __name__ == "__main__":
    main()
