"""Merges LoRA adapters with PEFT and with `quantize --lora`, and compares the weights.

usage: lora.py BIN MODEL DIR [KIND...]     (needs torch, transformers, peft, gguf)

MODEL is a folder that transformers loads; DIR gets the adapters and files. For every kind of adapter (`parameters` is for
mixtures, and only made where it is named): the share of values
that differ, and by how many units in the last place of the base's type at most (of the value, or of what was added, where
that is larger: PEFT rounds what it adds to embeddings). Matrix products add up in another order, so single values may be
rounded to a neighbour.
"""
import json
import subprocess
import sys
from pathlib import Path

import torch
from gguf import GGUFReader
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

binary, model, out, wanted = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4:]
linear = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
KINDS = {
    "plain": dict(target_modules=linear),
    "rslora": dict(target_modules=linear, use_rslora=True),
    "dora": dict(target_modules=linear, use_dora=True),
    "patterns": dict(target_modules=linear, rank_pattern={"down_proj": 3}, alpha_pattern={"down_proj": 5, "layers.0.self_attn.q_proj": 7}),
    "embedding": dict(target_modules=["embed_tokens", "q_proj"]),
    "dora-embedding": dict(target_modules=["embed_tokens", "q_proj"], use_dora=True),
    "parameters": dict(target_modules=["q_proj"], target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]),
    "saved": dict(target_modules=["q_proj"], modules_to_save=["norm"]),
    "bf16": dict(target_modules=linear),
}


def load():
    return AutoModelForCausalLM.from_pretrained(model, dtype="auto")


def read(file):
    return {t.name: torch.tensor(t.data) for t in GGUFReader(file).tensors}


def main():
    failed = 0
    subprocess.run([binary, "--to", "f32", model, "-o", out / "base.gguf", "--force", "--quiet"], check=True)
    plain = read(out / "base.gguf")
    for kind, settings in KINDS.items():
        if kind not in (wanted or [k for k in KINDS if k != "parameters"]):
            continue
        torch.manual_seed(7)
        adapted = get_peft_model(load(), LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", **settings))
        for name, p in adapted.named_parameters():
            if p.requires_grad:
                p.data = p.data + torch.randn_like(p.data) * (0.05 if "lora" in name else 0.01)
        if kind == "bf16":
            adapted = adapted.to(torch.bfloat16)
        adapter, merged = out / f"{kind}-adapter", out / f"{kind}-merged"
        adapted.save_pretrained(adapter)
        del adapted
        PeftModel.from_pretrained(load(), adapter).merge_and_unload().save_pretrained(merged)
        ours = out / f"{kind}.gguf"
        theirs = out / f"{kind}-merged.gguf"
        subprocess.run([binary, "--to", "f32", "--lora", adapter, model, "-o", ours, "--force", "--quiet"], check=True)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (merged / name).write_bytes((Path(model) / name).read_bytes())
        subprocess.run([binary, "--to", "f32", merged, "-o", theirs, "--force", "--quiet"], check=True)
        a, b = read(ours), read(theirs)
        assert a.keys() == b.keys(), a.keys() ^ b.keys()
        values = differ = 0
        most = 0.0
        for name in a:
            x, y = a[name].double(), b[name].double()
            wrong = x != y
            values += x.numel()
            differ += int(wrong.sum())
            if wrong.any():
                size = torch.maximum(y.abs(), (y - plain[name].double()).abs()).clamp(min=2.0**-14)
                most = max(most, float(((x - y).abs() / size)[wrong].max()))
        base = load()
        unit = torch.finfo(base.dtype).eps
        ok = differ <= values * 0.002 and most <= 2 * unit
        failed += not ok
        print(json.dumps({"adapter": kind, "values": values, "differ": differ, "most_units": most / unit, "ok": ok}))
    sys.exit(failed)


main()
