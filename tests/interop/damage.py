"""How many damaged GGUF files the check beside the source catches, and how many good ones it stops.

usage: damage.py QUANTIZE WORK SEED COUNT TYPES SOURCE [SOURCE ...]

Every SOURCE (a checkpoint folder) is converted to all of TYPES (comma-separated); those outputs are the good ones. `q4_k+imatrix` is
made with an importance matrix, `q4_k+feedback` with error feedback; what WORK holds already is not made again. COUNT of the
GGUF files are then damaged in one place each, drawn with SEED, and judged by `quantize verify FILE --check SOURCE`, without
the hash of the data that files record, which would find them all; so are the good ones. Prints Markdown. With COUNT 0 nothing is damaged.
"""
import collections
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

from gguf_edit import ARRAY, F32, STRING, Gguf

# Bytes of a block, and where its 16-bit scales lie: F16 is scaled value by value.
BLOCKS = {1: (2, [0]), 2: (18, [0]), 3: (20, [0, 2]), 6: (22, [0]), 7: (24, [0, 2]), 8: (34, [0]), 12: (144, [0, 2]), 13: (176, [0, 2]),
          14: (210, [208]), 11: (110, [108]), 10: (84, [80, 82]), 20: (18, [0]), 23: (136, [0]), 30: (2, [])}


def matrices(g, *ends):
    found = [t for t in g.tensors if len(t[1]) >= 2 and t[0].startswith("blk.")]
    return [t for t in found if not ends or any(t[0].endswith(f".{e}.weight") for e in ends)]


def swapped(g, r):
    """Two tensors of the same shape and type exchanged."""
    a = r.choice(matrices(g))
    b = r.choice([t for t in matrices(g) if t is not a and (t[1], t[2]) == (a[1], a[2]) and t[3] != a[3]])
    a[3], b[3] = b[3], a[3]


def transposed(g, r):
    """Rows and columns exchanged, in units of blocks."""
    t = r.choice([t for t in matrices(g) if t[2] in BLOCKS])
    size = BLOCKS[t[2]][0]
    per_row = len(t[3]) // size // (t[1][1] * (t[1][2] if len(t[1]) > 2 else 1))
    n = len(t[3]) // size
    assert per_row > 1
    blocks = [t[3][i * size : (i + 1) * size] for i in range(n)]
    t[3] = b"".join(blocks[row * per_row + col] for col in range(per_row) for row in range(n // per_row))


def offset(g, r):
    """Data that begin a row too late."""
    t = r.choice(matrices(g))
    row = len(t[3]) // (t[1][1] * (t[1][2] if len(t[1]) > 2 else 1))
    t[3] = t[3][row:] + t[3][:row]


def lost_rows(g, r):
    """One to three rows of a matrix that are nothing any more."""
    t = r.choice([t for t in matrices(g) if t[2] in BLOCKS])
    rows = t[1][1] * (t[1][2] if len(t[1]) > 2 else 1)
    row, first, n = len(t[3]) // rows, r.randrange(rows - 3), r.randint(1, 3)
    t[3] = t[3][: first * row] + bytes(n * row) + t[3][(first + n) * row :]


def wrong_rope(g, r):
    arch = g.get("general.architecture")
    name = f"{arch}.rope.freq_base"
    g.set(name, F32, g.get(name) * r.choice([0.02, 50.0]))


def wrong_rope_order(g, r):
    """The channels of every query head in the other rotary order: pairs beside each other, or half a head apart."""
    arch = g.get("general.architecture")
    t = r.choice(matrices(g, "attn_q", "attn_k", "attn_qkv"))
    width = g.get(f"{arch}.attention.key_length") or g.get(f"{arch}.embedding_length") // g.get(f"{arch}.attention.head_count")
    rows, size = t[1][1], len(t[3]) // t[1][1]
    row = [t[3][i * size : (i + 1) * size] for i in range(rows)]
    out = []
    for first in range(0, rows, width):
        head = row[first : first + width]
        out += [head[i // 2 + (i % 2) * (len(head) // 2)] for i in range(len(head))]
    t[3] = b"".join(out)


def wrong_norm(g, r):
    """A norm that lost or gained one, or another's."""
    t = r.choice([t for t in g.tensors if "norm" in t[0] and t[2] == 0 and len(t[1]) == 1])
    values = struct.unpack(f"<{t[1][0]}f", t[3])
    if r.random() < 0.5:
        other = r.choice([o for o in g.tensors if "norm" in o[0] and o[1] == t[1] and o[3] != t[3]])
        t[3] = other[3]
    else:
        one = r.choice([1.0, -1.0])
        t[3] = struct.pack(f"<{len(values)}f", *[v + one for v in values])


def wrong_tokenizer(g, r):
    tokens = g.get("tokenizer.ggml.tokens")
    what = r.randrange(3)
    if what == 0:
        a, b = r.sample(range(len(tokens)), 2)
        tokens[a], tokens[b] = tokens[b], tokens[a]
        g.set("tokenizer.ggml.tokens", ARRAY, tokens)
    elif what == 1:
        merges = g.get("tokenizer.ggml.merges")
        assert merges
        g.set("tokenizer.ggml.merges", ARRAY, merges[::-1])
    else:
        kind, raw = g.keys["tokenizer.ggml.token_type"]
        g.keys["tokenizer.ggml.token_type"] = (kind, raw[:12] + raw[16:] + raw[12:16])
        assert g.keys["tokenizer.ggml.token_type"] != (kind, raw)


def permuted_heads(g, r):
    """Two heads of one matrix exchanged, but not in the others."""
    arch = g.get("general.architecture")
    heads = g.get(f"{arch}.attention.head_count")
    t = r.choice(matrices(g, "attn_q", "attn_qkv"))
    width = g.get(f"{arch}.attention.key_length") or g.get(f"{arch}.embedding_length") // heads
    size = len(t[3]) // t[1][1]
    a, b = (h * width * size for h in r.sample(range(heads), 2))
    data, n = bytearray(t[3]), width * size
    data[a : a + n], data[b : b + n] = t[3][b : b + n], t[3][a : a + n]
    t[3] = bytes(data)


def wrong_scale(g, r):
    """All scales of a tensor twice or half as large."""
    t = r.choice([t for t in matrices(g) if t[2] in BLOCKS and BLOCKS[t[2]][1]])
    size, places = BLOCKS[t[2]]
    data, factor = bytearray(t[3]), r.choice([0.5, 2.0])
    for at in range(0, len(data), size):
        for place in places:
            (v,) = struct.unpack_from("<e", data, at + place)
            struct.pack_into("<e", data, at + place, v * factor)
    t[3] = bytes(data)


CALIBRATED = ["--calibration", "default", "--calibration-tokens", "1024", "--seq-len", "128"]
HOW = {"imatrix": [*CALIBRATED, "--rounding", "nearest"], "feedback": CALIBRATED}


def convert(quantize, source, name, folder):
    """The output, and why it was stopped."""
    kind, _, how = name.partition("+")
    is_file = kind.startswith(("q", "iq", "tq", "f16", "f32", "bf16", "mxfp4_moe"))
    path = folder / (f"{name}.gguf" if is_file else name)
    if path.exists():
        return path, None, 0
    # Folders whose format has integers in groups are calibrated unless told otherwise.
    in_groups = kind.startswith(("gptq", "w4a16", "w8a16"))
    plain = ["--uncalibrated"] if kind.startswith(("iq1", "iq2", "iq3")) else ["--rounding", "nearest"] if in_groups else []
    more = HOW.get(how, plain)
    args = [quantize, "--to", kind, source, "-o", path, "-f", "--quiet", "--no-source-hash", "--check", *more]
    run = subprocess.run(args, capture_output=True, text=True)
    return path, (run.stderr.strip()[-300:] if run.returncode else None), run.returncode


DAMAGES = [swapped, transposed, offset, lost_rows, wrong_rope, wrong_rope_order, wrong_norm, wrong_tokenizer, permuted_heads, wrong_scale]


def same(a, b):
    return a.keys == b.keys and [t[3] for t in a.tensors] == [t[3] for t in b.tensors]


def means(said):
    """What found a damage."""
    ways = {"gives results that differ": "running layers", "differs from the source's by": "weights", "norms are not": "weights",
            "tokenizer": "vocabulary", "scale": "unsound blocks"}
    return next((way for words, way in ways.items() if words in said), "configuration and others")


def main():
    quantize, work, seed, count, types, sources = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:]
    work.mkdir(parents=True, exist_ok=True)
    good, stopped, refused = [], 0, 0
    for source in sources:
        folder = work / source.strip("/").replace("/", "_")
        folder.mkdir(exist_ok=True)
        for name in types.split(","):
            path, why, code = convert(quantize, source, name, folder)
            if code == 0:
                good.append((source, name, path))
            elif code == 6:
                stopped += 1
            else:
                refused += 1
            if why:
                print(f"exit {code}:", source, name, why)
    print(f"{len(good) + stopped} good outputs, {stopped} stopped; {refused} conversions refused", flush=True)
    good = [g for g in good if g[2].is_file()]
    r, scratch = random.Random(seed), work / f"x{os.getpid()}.gguf"

    def judged(source, g):
        g.keys.pop("quantize.data.sha256", None)
        g.write(scratch)
        return subprocess.run([quantize, "verify", scratch, "--check", source, "--quiet"], capture_output=True, text=True)

    # What is sound has to pass the same judge.
    wrong = 0
    for source, name, path in good:
        run = judged(source, Gguf(path))
        wrong += run.returncode != 0
        if run.returncode:
            print(f"a good file, exit {run.returncode}: {source} {name} {(run.stdout + run.stderr).strip()[-160:]}")
    print(f"{wrong} of {len(good)} good files are found bad", flush=True)
    by_damage, by_type, missed = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter), []
    by_means = collections.Counter()
    while sum(sum(c.values()) for c in by_damage.values()) < count:
        source, name, path = r.choice(good)
        damage = r.choice(DAMAGES)
        g = Gguf(path)
        try:
            damage(g, r)
        except (AssertionError, IndexError, KeyError, TypeError, struct.error, OverflowError):
            continue
        # What is the same afterwards is no damage: a matrix of one row that begins a row too late.
        if same(g, Gguf(path)):
            continue
        run = judged(source, g)
        caught = run.returncode in (3, 6)
        by_damage[damage.__name__][caught] += 1
        by_type[name][caught] += 1
        by_means[means(run.stdout + run.stderr)] += caught
        if not caught:
            missed.append(f"{source} {name} {damage.__name__}: exit {run.returncode} {(run.stdout + run.stderr).strip()[-160:]}")
    print("| damage | caught | of |\n|---|---|---|")
    for table in (by_damage, by_type):
        for name, c in table.items():
            print(f"| {name} | {c[True]} | {c[True] + c[False]} |")
    print("found by: " + ", ".join(f"{way} {n}" for way, n in by_means.most_common() if n))
    caught, all_ = (sum(c[k] for c in by_damage.values() for k in keys) for keys in ([True], [True, False]))
    print(f"\ncaught {caught} of {all_}: {100 * caught / max(all_, 1):.1f} %")
    for what in missed:
        print("missed:", what)


if __name__ == "__main__":
    main()
