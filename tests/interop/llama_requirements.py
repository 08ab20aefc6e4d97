"""What llama.cpp's loader requires of each architecture, found by taking things away from small files that load: the table
src/convert/loadable/llama_cpp.json.

usage: llama_requirements.py OUT.json LLAMA_CPP FILE.gguf [FILE.gguf ...]

The files: small checkpoints in 16 bits. LLAMA_CPP: its source, for the names of architectures. Needs xllamacpp.

Per architecture: metadata keys without which it refuses, with their types (`keys`, without the architecture's name), keys that it
need not have and refuses in another type (`optional`), tensors
outside of blocks (`ends`) and in blocks (`blocks`: one list for each kind of block that was seen) that it refuses to be
without, all names of tensors that were seen (`known`), and of every tensor what its sizes are, slowest first, in terms of the
metadata (`sizes`, by numbers of `terms`): several terms where several fit. What is not known of a size is left out.
"""
import itertools
import json
import os
import re
import sys
import tempfile

from gguf_edit import STRING, Gguf, loads



def integers(g):
    """The sizes that a file states, as they are in the first layer that has each: name -> value or list."""
    arch = g.get("general.architecture") + "."
    out = {"vocab": len(g.get("tokenizer.ggml.tokens") or [])}
    for name, (kind, _) in g.keys.items():
        value = g.get(name) if name.startswith(arch) else None
        if isinstance(value, bool) or value is None:
            continue
        if isinstance(value, int) or (isinstance(value, list) and value and all(isinstance(v, int) for v in value)):
            out[name[len(arch) :]] = value
    heads, width = out.get("attention.head_count"), out.get("embedding_length")
    heads = heads if isinstance(heads, int) else max(heads or [0])
    if heads and width:
        for name in ("attention.key_length", "attention.value_length"):
            out.setdefault(name, width // heads)
    out.setdefault("attention.head_count_kv", out.get("attention.head_count"))
    return out


FACTORS = ["attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length", "expert_shared_count",
           "expert_feed_forward_length", "ssm.inner_size", "ssm.state_size", "ssm.group_count", "ssm.time_step_rank", "attention.kv_lora_rank"]


def terms(sizes, layer, dim):
    """Terms over the sizes that give `dim`: a size, twice it, or a product of two."""
    def at(name):
        value = sizes.get(name)
        if isinstance(value, list):
            return value[layer] if layer is not None and layer < len(value) else None
        return value

    found = []
    for name in sizes:
        for factor in (1, 2, 3, 4):
            if at(name) and at(name) * factor == dim:
                found.append(name if factor == 1 else f"{factor}*{name}")
    for a, b in itertools.combinations(FACTORS, 2):
        for factor in (1, 2):
            if at(a) and at(b) and at(a) * at(b) * factor == dim:
                found.append(f"{factor}*{a}*{b}" if factor > 1 else f"{a}*{b}")
    heads, kv, width, value = (at(n) for n in FACTORS[:4])
    if heads and kv and width and value and heads * width + kv * width + kv * value == dim:
        found.append("qkv")
    return found


Q, K, V = "attention.head_count*attention.key_length", "attention.head_count_kv*attention.key_length", "attention.head_count_kv*attention.value_length"
WIDTH, FFN, EXPERTS = ["embedding_length"], ["feed_forward_length"], ["expert_count"]
# What a size is by its meaning, where several terms fit; by tensor, slowest dimension first.
MEANT = [
    (r"attn_q\.(weight|bias)", [Q], WIDTH), (r"attn_k\.(weight|bias)", [K], WIDTH), (r"attn_v\.(weight|bias)", [V], WIDTH),
    (r"attn_qkv\.(weight|bias)", ["qkv"], WIDTH), (r"attn_output\.weight", WIDTH, ["attention.head_count*attention.value_length"]),
    (r"attn_[qk]_norm\.weight", ["attention.key_length"]),
    (r"ffn_(up|gate)\.(weight|bias)", FFN, WIDTH), (r"ffn_down\.weight", WIDTH, FFN),
    (r"ffn_(up|gate)_exps\.weight", EXPERTS, ["expert_feed_forward_length"], WIDTH),
    (r"ffn_down_exps\.weight", EXPERTS, WIDTH, ["expert_feed_forward_length"]), (r"ffn_gate_inp\.weight", EXPERTS, WIDTH),
    (r"ffn_(up|gate)_shexp\.weight", ["expert_shared_feed_forward_length"], WIDTH), (r"ffn_down_shexp\.weight", WIDTH, ["expert_shared_feed_forward_length"]),
    (r"token_embd\.weight|output\.weight", ["vocab"], WIDTH),
    (r"(attn|ffn|output|token_embd|post_attention|post_ffw|attn_post|ffn_post)_norm\.(weight|bias)|(ffn_down|attn_output)\.bias", WIDTH),
    (r"ssm_a|ssm_d", ["ssm.inner_size"]), (r"ssm_conv1d\.weight", [], ["ssm.conv_kernel"]),
]


def meant(name, dims):
    """The terms of each dimension, only the one that is meant where it is among them."""
    for pattern, *wanted in MEANT:
        if re.fullmatch(r"((enc|dec)\.)?(" + pattern + ")", name):
            return [[t for t in found if t in want] or found for found, want in zip(dims, wanted)] + dims[len(wanted):]
    return dims


def stem(name):
    found = re.fullmatch(r"(?:(enc|dec)\.)?blk\.(\d+)\.(.*)", name)
    return (None, name) if not found else (int(found[2]), (found[1] + "." if found[1] else "") + found[3])


def main():
    out_path, source, files = sys.argv[1], sys.argv[2], sys.argv[3:]
    architectures = re.search(r"LLM_ARCH_NAMES = \{(.*?)\};", open(f"{source}/src/llama-arch.cpp").read(), re.S)[1]
    architectures = sorted(set(re.findall(r'"([^"(]+)"', architectures)))
    folder = tempfile.mkdtemp()
    scratch = os.path.join(folder, "x.gguf")
    table = {}
    for path in files:
        whole = Gguf(path)
        arch = whole.get("general.architecture")
        if not loads(path):
            print(path, arch, "does not load", flush=True)
            continue

        def refused(change):
            g = Gguf(path)
            change(g)
            g.write(scratch)
            return not loads(scratch)

        def without_key(name):
            return lambda g: g.keys.pop(name)

        def as_text(name):
            return lambda g: g.set(name, STRING, "text")

        def without(*names):
            def change(g):
                g.tensors = [t for t in g.tensors if t[0] not in names]
            return change

        own = [k for k in whole.keys if k.startswith(arch + ".")]
        keys = {k[len(arch) + 1 :]: whole.keys[k][0] for k in own if refused(without_key(k))}
        optional = {k[len(arch) + 1 :]: whole.keys[k][0] for k in own if k[len(arch) + 1 :] not in keys and refused(as_text(k))}
        sizes = integers(whole)
        by_layer, first = {}, {}
        for name, dims, _, _ in whole.tensors:
            layer, part = stem(name)
            by_layer.setdefault(layer, set()).add(part)
            first.setdefault((layer is None, part), name)
        # A kind of block: the names in it. Each is tried once, in the first block of its kind.
        kinds = {}
        for layer, parts in by_layer.items():
            if layer is not None:
                kinds.setdefault(frozenset(parts), layer)
        names = {stem(t[0]): t[0] for t in whole.tensors}
        blocks = [sorted(p for p in parts if refused(without(names[layer, p]))) for parts, layer in kinds.items()]
        ends = sorted(p for p in by_layer.get(None, ()) if refused(without(p)))
        row = table.setdefault(arch, {"keys": keys, "optional": {}, "ends": None, "blocks": [], "known": [], "sizes": {}})
        row["keys"] = {k: row["keys"][k] for k in sorted(keys) if k in row["keys"]}
        row["optional"].update(optional)
        row["ends"] = sorted(ends if row["ends"] is None else set(ends) & set(row["ends"]))
        row["blocks"] += [b for b in blocks if b not in row["blocks"]]
        row["known"] = sorted(set(row["known"]) | {stem(t[0])[1] for t in whole.tensors})
        for name, dims, _, _ in whole.tensors:
            layer, part = stem(name)
            now = [terms(sizes, layer, d) for d in reversed(dims)]
            # Half of the rotated channels, which is no product of what files state: terms that fit small files do so by chance.
            if part.startswith("rope_f"):
                continue
            before = row["sizes"].get(part)
            if before is not None and len(before) == len(now):
                # Several blocks and files: what fits all of them.
                now = [[t for t in a if t in b] for a, b in zip(before, now)]
            elif before is not None:
                now = []
            row["sizes"][part] = now
        print(path, arch, len(keys), "keys", len(ends), "ends", [len(b) for b in blocks], flush=True)
    write(out_path, architectures, table)


def write(path, names, table):
    """The table, with each term once."""
    def plain(found):
        simple = [t for t in found if not re.match("[34]\\*", t)] or found
        return sorted(simple, key=lambda t: (t.count("*"), len(t)))[:6]

    numbers = {}
    for row in table.values():
        row["sizes"] = {name: [[numbers.setdefault(t, len(numbers)) for t in plain(d)] for d in meant(name, dims)]
                        for name, dims in sorted(row["sizes"].items()) if any(dims)}
    with open(path, "w") as out:
        out.write('{"names": ' + json.dumps(names) + ',\n"terms": ' + json.dumps(list(numbers)) + ',\n"architectures": {\n')
        rows = (f"{json.dumps(arch)}: {json.dumps(row, separators=(',', ':'))}" for arch, row in sorted(table.items()))
        out.write(",\n".join(rows) + "\n}}\n")


if __name__ == "__main__":
    main()
