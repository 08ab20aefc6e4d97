"""What `quantize verify --for llama.cpp` says of GGUF files beside what llama.cpp does with them: sound files, and files
broken in one place each. Prints Markdown; exit code 1 for a false 'loads', or more than 2 % of false refusals.

usage: verdicts.py QUANTIZE WORK SEED COUNT FILE.gguf [FILE.gguf ...]      (small 16-bit files; needs xllamacpp)

COUNT files are made by changes drawn with SEED; the files named are judged as they are, too.
"""
import collections
import json
import os
import random
import subprocess
import sys
from pathlib import Path

from gguf_edit import ARRAY, F32, STRING, U32, U64, Gguf, loads


def own(g, kinds=(U32, F32)):
    arch = g.get("general.architecture") + "."
    return [k for k, (kind, _) in g.keys.items() if k.startswith(arch) and kind in kinds]


def key(g, name):
    return f"{g.get('general.architecture')}.{name}"


def drop_key(g, r):
    g.keys.pop(r.choice(own(g)))


def drop_tensor(g, r):
    g.tensors.remove(r.choice(g.tensors))


def extra_tensor(g, r):
    g.tensors.append(["blk.0.extra.weight", [32], 0, bytes(128)])


def rename_tensor(g, r):
    r.choice(g.tensors)[0] += "x"


def matrix(g, r):
    return r.choice([t for t in g.tensors if len(t[1]) == 2 and t[2] in (0, 1) and t[1][1] > 1])


def row_less(g, r):
    t = matrix(g, r)
    t[3] = t[3][: len(t[3]) * (t[1][1] - 1) // t[1][1]]
    t[1] = [t[1][0], t[1][1] - 1]


def swap_dims(g, r):
    t = r.choice([t for t in g.tensors if len(t[1]) == 2 and t[1][0] != t[1][1]])
    t[1] = t[1][::-1]


def norm_in_f16(g, r):
    t = r.choice([t for t in g.tensors if len(t[1]) == 1 and t[2] == 0])
    t[2], t[3] = 1, t[3][: len(t[3]) // 2]


def other_number(g, r):
    name = r.choice([k for k in own(g, (U32,)) if g.get(k) > 1] or own(g, (U32,)))
    g.set(name, U32, g.get(name) * 2)


def other_type(g, r):
    name = r.choice(own(g, (U32,)))
    g.set(name, U64, g.get(name))


def as_text(g, r):
    name = r.choice(own(g))
    g.set(name, STRING, str(g.get(name)))


def block_more(g, r):
    g.set(key(g, "block_count"), U32, g.get(key(g, "block_count")) + 1)


def block_less(g, r):
    g.set(key(g, "block_count"), U32, g.get(key(g, "block_count")) - 1)


def unknown_architecture(g, r):
    g.set("general.architecture", STRING, "unheard")


def no(name):
    def change(g, r):
        g.keys.pop("tokenizer.ggml." + name)
    change.__name__ = "no_" + name
    return change


def token_twice(g, r):
    tokens = g.get("tokenizer.ggml.tokens")
    a, b = r.sample(range(len(tokens)), 2)
    tokens[a] = tokens[b]
    g.set("tokenizer.ggml.tokens", ARRAY, tokens)


def token_less(g, r):
    g.set("tokenizer.ggml.tokens", ARRAY, g.get("tokenizer.ggml.tokens")[:-1])


def token_more(g, r):
    g.set("tokenizer.ggml.tokens", ARRAY, g.get("tokenizer.ggml.tokens") + ["one more"])


def unknown_pre(g, r):
    assert g.get("tokenizer.ggml.model") == "gpt2"
    g.set("tokenizer.ggml.pre", STRING, "unheard")


def unknown_vocabulary(g, r):
    g.set("tokenizer.ggml.model", STRING, "unheard")


def types_as_text(g, r):
    g.set("tokenizer.ggml.token_type", ARRAY, ["1"] * len(g.get("tokenizer.ggml.tokens")))


def no_bytes(g, r):
    tokens = g.get("tokenizer.ggml.tokens")
    assert g.get("tokenizer.ggml.model") == "llama" and "<0x0A>" in tokens
    g.set("tokenizer.ggml.tokens", ARRAY, [f"byte {t[3:5]}" if t.startswith("<0x") else t for t in tokens])


def cut(path, r):
    data = open(path, "rb").read()
    open(path, "wb").write(data[: r.randrange(24, len(data) - 64)])


def other_magic(path, r):
    data = open(path, "rb").read()
    open(path, "wb").write(b"GGUX" + data[4:])


# What leaves a file as sound as it was.
def no_name(g, r):
    g.keys.pop("general.name", None)


def more_keys(g, r):
    g.set("somebody.else", STRING, "says")


def other_base(g, r):
    g.set(key(g, "rope.freq_base"), F32, 5e5)


def other_context(g, r):
    g.set(key(g, "context_length"), U32, 4096)


def tensors_in_another_order(g, r):
    r.shuffle(g.tensors)


CHANGES = [drop_key, drop_key, drop_tensor, drop_tensor, extra_tensor, rename_tensor, row_less, row_less, swap_dims, norm_in_f16,
           other_number, other_number, other_type, as_text, block_more, block_less, unknown_architecture, no("model"), no("tokens"),
           no("merges"), no("scores"), no("token_type"), token_twice, token_less, token_more, unknown_pre, unknown_vocabulary,
           types_as_text, no_bytes, cut, other_magic, no_name, more_keys, other_base, other_context, tensors_in_another_order]


def main():
    quantize, work, seed, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    files = sys.argv[5:]
    work.mkdir(parents=True, exist_ok=True)
    r = random.Random(seed)
    jobs = [(path, None) for path in files]
    while len(jobs) < len(files) + count:
        jobs.append((r.choice(files), r.choice(CHANGES)))
    table = collections.defaultdict(collections.Counter)
    false_loads, false_refusals, judged = [], [], 0
    scratch = work / "x.gguf"
    for path, change in jobs:
        g = Gguf(path)
        try:
            if change in (cut, other_magic):
                g.write(scratch)
                change(scratch, r)
            else:
                if change:
                    change(g, r)
                g.write(scratch)
        except (KeyError, IndexError, AssertionError, ValueError):
            continue
        try:
            truth = loads(scratch)
        except Exception:
            truth = False
        run = subprocess.run([quantize, "verify", scratch, "--for", "llama.cpp", "--format", "json", "--quiet"], capture_output=True, text=True)
        try:
            engine = json.loads(run.stdout)["engines"][0]
            says, why = engine["loads"], "; ".join(o["what"] for o in engine["objections"])
        except (json.JSONDecodeError, KeyError):
            says, why = False, run.stderr.strip()[-200:]
        name = change.__name__ if change else "as it is"
        table[name][(truth, says)] += 1
        judged += 1
        what = f"{Path(path).stem}, {name}: {why}"
        if says is True and not truth:
            false_loads.append(what)
            os.replace(scratch, work / f"loads-{len(false_loads)}.gguf")
        if says is False and truth:
            false_refusals.append(what)
    print("| change | loads, said to | refused, said to be | said 'not known' | false 'loads' | false refusals |\n|---|---|---|---|---|---|")
    for name, c in sorted(table.items()):
        unknown = c[True, None] + c[False, None]
        print(f"| {name} | {c[True, True]} | {c[False, False]} | {unknown} | {c[False, True]} | {c[True, False]} |")
    sound = sum(n for c in table.values() for (truth, _), n in c.items() if truth)
    share = 100 * len(false_refusals) / max(sound, 1)
    print(f"\n{judged} files, {sound} of them load: {len(false_loads)} false 'loads', {len(false_refusals)} false refusals ({share:.1f} %)")
    for what in false_loads:
        print("false 'loads':", what)
    for what in false_refusals:
        print("false refusal:", what)
    sys.exit(bool(false_loads) or share > 2)


if __name__ == "__main__":
    main()
