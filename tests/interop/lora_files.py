"""Compares LoRA adapters as GGUF files with what llama.cpp's convert_lora_to_gguf.py makes of them.

usage: lora_files.py BIN LLAMA_CPP WORK MODEL [MODEL ...]     (needs torch, transformers, gguf)

MODEL is a checkpoint folder; WORK gets a random adapter (rank 4) of all its linear layers, and both files. Prints a line for
each model where tensors or metadata differ, or only one of the two writes a file, and the counts.
"""
import collections
import hashlib
import json
import os
import re
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

binary, llama, work, models = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), [Path(m) for m in sys.argv[4:]]
sys.path[:0] = [str(llama), str(llama / "gguf-py")]
from gguf import GGUFReader  # noqa: E402 (llama.cpp's own)

OTHERS = re.compile(r"embed|lm_head|norm|wte|wpe|vis|router|rel_pos|relative|position|token_type|conv|gate\.|altup|score|classif|pooler|vit\.")


def make_adapter(model, to):
    tensors = {}
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as f:
            for name in f.keys():
                shape = f.get_slice(name).get_shape()
                layer = re.search(r"\.(layers?|h|blocks?)\.\d", name)
                if layer and name.endswith(".weight") and len(shape) == 2 and not OTHERS.search(name):
                    module = "base_model.model." + name.removesuffix(".weight")
                    tensors[f"{module}.lora_A.weight"] = torch.randn(4, shape[1]) * 0.05
                    tensors[f"{module}.lora_B.weight"] = torch.randn(shape[0], 4) * 0.05
    if tensors:
        to.mkdir(parents=True, exist_ok=True)
        save_file(tensors, to / "adapter_model.safetensors")
        (to / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 16, "base_model_name_or_path": model.name}))
    return bool(tensors)


def theirs(model, adapter, to):
    """In a process of its own, since their script keeps what it learned of one model."""
    child = os.fork()
    if child == 0:
        try:
            log = open(f"{to}.log", "w")
            os.dup2(log.fileno(), 1), os.dup2(log.fileno(), 2)
            sys.argv = ["convert_lora_to_gguf.py", "--outtype", "f16", "--base", str(model), "--outfile", str(to), str(adapter)]
            runpy.run_path(str(llama / "convert_lora_to_gguf.py"), run_name="__main__")
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def content(path):
    reader = GGUFReader(path)
    tensors = {t.name: (t.shape.tolist(), t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()) for t in reader.tensors}
    keys = {k: f.contents() for k, f in reader.fields.items() if not k.startswith(("GGUF.", "quantize."))}
    return tensors, keys


def main():
    counts = collections.Counter()
    for model in models:
        torch.manual_seed(11)
        adapter, ours, other = work / model.name, work / f"{model.name}-LoRA.gguf", work / f"{model.name}-theirs.gguf"
        if not make_adapter(model, adapter):
            counts["no linear layers"] += 1
            continue
        run = subprocess.run([binary, "--to", "f16", "--lora", adapter, model, "-o", ours, "--force", "--quiet"], capture_output=True, text=True)
        made = (run.returncode == 0, theirs(model, adapter, other))
        if made != (True, True):
            kind = {(True, False): "ours only", (False, True): "theirs only", (False, False): "neither"}[made]
            print(f"{model.name}: {kind}", run.stderr.strip().splitlines()[:1])
        else:
            pairs = list(zip(content(ours), content(other)))
            differ = [sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k)) for a, b in pairs]
            kind = "different" if any(differ) else "equal"
            if kind == "different":
                print(f"{model.name}: {differ}")
        counts[kind] += 1
    print(dict(counts))


if __name__ == "__main__":
    main()
