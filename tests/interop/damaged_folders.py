"""How many damaged checkpoint folders `verify FOLDER --check SOURCE` catches, and how many good ones it stops.

usage: damaged_folders.py QUANTIZE WORK SEED COUNT FORMATS SOURCE [SOURCE ...]

Every SOURCE (a checkpoint folder) is converted to all of FORMATS (comma-separated; what WORK holds already is not made again): the good
folders. COUNT copies of these are then damaged in one place each, drawn with SEED, and judged. Prints Markdown.
"""
import collections
import json
import random
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy
from folder_damage import read, write

FLOATS = {"F16": numpy.float16, "F32": numpy.float32}
CODES = ("weight_packed", "qweight", "weight")
SCALES = ("scales", "weight_scale", "weight_scale_inv", "weight.absmax", "SCB", "weight_global_scale")


def modules(t):
    """Quantized modules: name → its tensors' suffixes."""
    found = collections.defaultdict(list)
    for name in t:
        for suffix in SCALES:
            if name.endswith("." + suffix):
                module = name[: -len(suffix) - 1]
                found[module] = [n[len(module) + 1 :] for n in t if n.startswith(module + ".")]
    return found


def codes_of(t, module):
    return next(f"{module}.{c}" for c in CODES if f"{module}.{c}" in t)


def floats(t, name):
    """Values of a tensor of floats, and how they go back."""
    dtype, shape, data = t[name]
    if dtype == "BF16":
        values = (numpy.frombuffer(data, numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        return values, lambda v: (v.astype(numpy.float32).view(numpy.uint32) >> 16).astype(numpy.uint16).tobytes()
    values = numpy.frombuffer(data, FLOATS[dtype]).astype(numpy.float32)
    return values, lambda v: v.astype(FLOATS[dtype]).tobytes()


def swapped(t, r):
    """Two modules of the same shapes exchanged."""
    all_ = modules(t)
    a = r.choice(sorted(all_))
    alike = lambda b: all(f"{b}.{s}" in t and t[f"{b}.{s}"][:2] == t[f"{a}.{s}"][:2] for s in all_[a])
    b = r.choice([b for b in sorted(all_) if b != a and alike(b) and t[codes_of(t, b)][2] != t[codes_of(t, a)][2]])
    for s in all_[a]:
        t[f"{a}.{s}"], t[f"{b}.{s}"] = t[f"{b}.{s}"], t[f"{a}.{s}"]


def swapped_codes(t, r):
    """The codes of two modules exchanged, their scales left."""
    a = r.choice(sorted(modules(t)))
    name = codes_of(t, a)
    others = [codes_of(t, b) for b in sorted(modules(t)) if b != a]
    other = r.choice([o for o in others if t[o][:2] == t[name][:2] and t[o][2] != t[name][2]])
    t[name], t[other] = t[other], t[name]


def offset(t, r):
    """Codes that begin a row too late."""
    name = codes_of(t, r.choice(sorted(modules(t))))
    dtype, shape, data = t[name]
    row = len(data) // shape[0]
    assert len(shape) == 2 and shape[0] > 1
    t[name] = [dtype, shape, data[row:] + data[:row]]


def no_codes(t, r):
    """Codes that are all the same."""
    name = codes_of(t, r.choice(sorted(modules(t))))
    dtype, shape, data = t[name]
    t[name] = [dtype, shape, data[:1] * len(data)]


def wrong_scale(t, r):
    """Scales twice or half as large."""
    module = r.choice(sorted(modules(t)))
    name = r.choice([f"{module}.{s}" for s in SCALES if f"{module}.{s}" in t])
    dtype, shape, data = t[name]
    if dtype == "U8" and name.endswith("weight_scale"):
        return t.update({name: [dtype, shape, bytes(b + 1 for b in data)]})
    values, back = floats(t, name)
    t[name] = [dtype, shape, back(values * r.choice([0.5, 2.0]))]


def other_scales(t, r):
    """Scales in the reverse order."""
    module = r.choice(sorted(modules(t)))
    name = r.choice([f"{module}.{s}" for s in SCALES if f"{module}.{s}" in t and len(t[f"{module}.{s}"][2]) > 64])
    dtype, shape, data = t[name]
    size = {"U8": 1, "F8_E4M3": 1, "F16": 2, "BF16": 2, "F32": 4}[dtype]
    values = numpy.frombuffer(data, f"V{size}")
    t[name] = [dtype, shape, values[::-1].tobytes()]


def lost_rows(t, r):
    """One to three rows of a matrix that are nothing any more."""
    module = r.choice(sorted(modules(t)))
    name = r.choice([f"{module}.{s}" for s in ("weight_scale", "scales", "SCB") if f"{module}.{s}" in t])
    dtype, shape, data = t[name]
    codes = t[codes_of(t, module)]
    assert shape[0] == codes[1][0] and shape[0] > 40 and dtype in ("F16", "BF16", "F32")
    row, first = len(data) // shape[0], r.randrange(shape[0] - 3)
    n = r.randint(1, 3)
    t[name] = [dtype, shape, data[: first * row] + bytes(n * row) + data[(first + n) * row :]]
    biases = f"{module}.biases"
    if biases in t:
        x = t[biases]
        t[biases] = [*x[:2], x[2][: first * row] + bytes(n * row) + x[2][(first + n) * row :]]


def wrong_input_scale(t, r):
    """A scale of activations a hundred times too large or too small."""
    name = r.choice(sorted(n for n in t if n.endswith((".input_scale", ".input_global_scale"))))
    values, back = floats(t, name)
    t[name] = [*t[name][:2], back(values * r.choice([0.01, 100.0]))]


def wrong_norm(t, r):
    """A norm that lost or gained one, or another's."""
    norms = [n for n in t if "norm" in n and n.endswith("weight") and len(t[n][1]) == 1]
    name = r.choice(norms)
    if r.random() < 0.5:
        other = r.choice([o for o in norms if t[o][:2] == t[name][:2] and t[o][2] != t[name][2]])
        t[name] = t[other]
    else:
        values, back = floats(t, name)
        t[name] = [*t[name][:2], back(values + r.choice([1.0, -1.0]))]


def wrong_rope(folder, r):
    config = json.loads((folder / "config.json").read_text())
    places = [p for p in (config, config.get("rope_parameters"), config.get("rope_scaling")) if p and "rope_theta" in p]
    assert places
    for place in places:
        place["rope_theta"] *= 50.0
    (folder / "config.json").write_text(json.dumps(config))


def wrong_tokenizer(folder, r):
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    model = tokenizer["model"]
    if r.random() < 0.5 and len(model.get("merges", [])) > 1:
        model["merges"] = model["merges"][::-1]
    else:
        vocab = model["vocab"]
        letters = [token for token in vocab if len(token) == 1 and token.isalpha()]
        a, b = r.sample(letters, 2)
        vocab[a], vocab[b] = vocab[b], vocab[a]
    path.write_text(json.dumps(tokenizer))


def wrong_id(folder, r):
    """Another token at which text begins or ends."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    key = r.choice([k for k in ("bos_token_id", "eos_token_id") if isinstance(config.get(k), int)])
    config[key] += r.randint(1, 9)
    path.write_text(json.dumps(config))


def wrong_class(folder, r):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    path.write_text(json.dumps(config))


OF_TENSORS = [swapped, swapped_codes, offset, no_codes, wrong_scale, other_scales, lost_rows, wrong_input_scale, wrong_norm]
OF_FOLDERS = [wrong_rope, wrong_tokenizer, wrong_id, wrong_class]
CALIBRATED = ["--calibration", "default", "--calibration-tokens", "1024", "--seq-len", "128"]


def main():
    quantize, work, seed, count, formats, sources = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], sys.argv[6:]
    good, not_made = [], 0
    for source in sources:
        for form in formats.split(","):
            name, _, how = form.partition("+")
            path = work / source.strip("/").replace("/", "_") / form
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                more = CALIBRATED if how or name.startswith(("gptq", "awq")) or name in ("fp8-static", "nvfp4") else ["--rounding", "nearest"] if name.startswith(("w4", "w8")) else []
                args = [quantize, "--to", name, source, "-o", path, "-q", "--on-fallback", "allow", *more]
                run = subprocess.run(args, capture_output=True, text=True)
                not_made += run.returncode != 0
                if run.returncode:
                    print(f"exit {run.returncode}: {source} {form} {run.stderr.strip()[-200:]}")
                    continue
            good.append((source, form, path))

    def judged(source, path):
        return subprocess.run([quantize, "verify", path, "--check", source, "-q"], capture_output=True, text=True)

    wrong = 0
    for source, form, path in good:
        run = judged(source, path)
        wrong += run.returncode != 0
        if run.returncode:
            print(f"a good folder, exit {run.returncode}: {source} {form} {(run.stdout + run.stderr).strip()[-200:]}")
    print(f"{wrong} of {len(good)} good folders are found bad; {not_made} were not made", flush=True)
    r, scratch = random.Random(seed), work / "damaged"
    caught, missed, done = collections.defaultdict(collections.Counter), [], 0
    while done < count:
        source, form, path = r.choice(good)
        damage = r.choice(OF_TENSORS + OF_FOLDERS)
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(path, scratch)
        try:
            if damage in OF_TENSORS:
                metadata, t = read(scratch)
                before = {name: tensor[2] for name, tensor in t.items()}
                damage(t, r)
                if before == {name: tensor[2] for name, tensor in t.items()}:
                    continue
                write(scratch / "model.safetensors", metadata, t)
            else:
                damage(scratch, r)
        except (AssertionError, IndexError, KeyError, TypeError, ValueError, StopIteration, FileNotFoundError, struct.error):
            continue
        run = judged(source, scratch)
        done += 1
        found = run.returncode in (3, 6)
        caught[damage.__name__][found] += 1
        caught[form][found] += 1
        if not found:
            missed.append(f"{source} {form} {damage.__name__}: exit {run.returncode} {(run.stdout + run.stderr).strip()[-200:]}")
    print("| damage, format | caught | of |\n|---|---|---|")
    for name, c in caught.items():
        print(f"| {name} | {c[True]} | {c[True] + c[False]} |")
    print(f"\ncaught {done - len(missed)} of {done}")
    for what in missed:
        print("missed:", what)


if __name__ == "__main__":
    main()
