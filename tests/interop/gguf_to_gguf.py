"""GGUF to GGUF against llama-quantize: every tensor's type and bytes, for F16 files of every architecture that llama.cpp's converter writes.

usage: gguf_to_gguf.py record LLAMA_QUANTIZE F16_DIR EXPECTED.json [NAME ...]    what llama-quantize makes of F16_DIR/*.gguf
       gguf_to_gguf.py compare QUANTIZE F16_DIR EXPECTED.json [NAME ...]         what our binary makes of them; exits 1 where a tensor differs
       gguf_to_gguf.py types LLAMA_QUANTIZE F16_DIR OUT.json [NAME ...]          the types alone, with and without importance: tests/golden/architectures/types.json
       gguf_to_gguf.py hashes LLAMA_QUANTIZE F16_DIR OUT.json NAME ...           the bytes for made-up weights: tests/golden/architectures/hashes.json

Needs gguf and numpy. The F16 files come from checkpoints with rows of 768, 512 and odd parts of them:
  SEED=5 HIDDEN=768 FFN=512 make_families.py CHECKPOINTS; convert_with_llama_cpp.py LLAMA_CPP --in CHECKPOINTS --gguf F16_DIR
`record` draws an importance matrix of random positive numbers for each (F16_DIR/imatrix/NAME.gguf), which Q2_K is made with.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from pathlib import Path

import gguf
import numpy as np

# Target: whether an importance matrix goes with it.
TARGETS = {"Q4_K_M": False, "Q3_K_M": False, "Q2_K": True, "IQ4_XS": False, "Q8_0": False, "MXFP4_MOE": False}
GOLDEN = """F32 F16 Q5_0 Q8_0 Q2_K Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_M Q6_K IQ1_M IQ2_M IQ3_XXS IQ3_XS IQ3_M IQ4_NL IQ4_XS
TQ2_0 MXFP4_MOE""".split()


def imatrix_of(reader, model):
    """Random positive importance for every matrix, per stacked matrix, in llama.cpp's newer form, beside the model."""
    path = model.parent / "imatrix" / model.name
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    w = gguf.GGUFWriter(path, "")
    w.kv_data[0].clear()
    w.add_string("general.type", "imatrix")
    w.add_array("imatrix.datasets", ["random"])
    w.add_uint32("imatrix.chunk_count", 7)
    w.add_uint32("imatrix.chunk_size", 512)
    for t in reader.tensors:
        ne = [int(x) for x in t.shape] + [1] * (4 - len(t.shape))
        if not t.name.endswith("weight") or ne[1] * ne[2] * ne[3] == 1:
            continue
        rng = np.random.default_rng(zlib.crc32(t.name.encode()))
        counts = rng.integers(1, 3000, (ne[2], 1)).astype(np.float32)
        means = rng.gamma(0.7, 1.0, (ne[2], ne[0])).astype(np.float32) + np.float32(1e-4)
        w.add_tensor(t.name + ".in_sum2", means * counts)
        w.add_tensor(t.name + ".counts", counts)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def describe(path):
    return {t.name: [t.tensor_type.name, hashlib.sha256(t.data.tobytes()).hexdigest()] for t in gguf.GGUFReader(path).tensors}


def run(command):
    # An assertion of ggml's would start a debugger.
    r = subprocess.run(command, capture_output=True, text=True, errors="replace", env={**os.environ, "GGML_NO_BACKTRACE": "1"})
    return r.returncode, r.stdout + r.stderr


def files(folder, only):
    return [p for p in sorted(Path(folder).glob("*.gguf")) if not only or p.stem in only]


def record(exe, folder, out, only):
    known = json.loads(Path(out).read_text()) if os.path.exists(out) else {}
    for path in files(folder, only):
        if path.stem in known:
            continue
        reader = gguf.GGUFReader(path)
        imatrix = imatrix_of(reader, path)
        row = {"arch": reader.fields["general.architecture"].contents(), "targets": {}}
        for target, needs in TARGETS.items():
            with tempfile.TemporaryDirectory() as d:
                make = lambda flags: run([exe, *flags, *(["--imatrix", imatrix] if needs else []), path, f"{d}/o.gguf", target, "1"])
                flags = []
                code, log = make(flags)
                if code and "requantizing from type" in log:
                    flags = ["--allow-requantize"]
                    code, log = make(flags)
                lines = [line for line in log.splitlines() if line.strip()]
                row["targets"][target] = {"error": lines[-3:]} if code else {"flags": flags, "tensors": describe(f"{d}/o.gguf")}
        known[path.stem] = row
        Path(out + ".part").write_text(json.dumps(known))
        os.replace(out + ".part", out)
        print(path.stem, row["arch"], {t: r["error"] for t, r in row["targets"].items() if "error" in r} or "recorded", flush=True)


def differences(expected, found):
    """Tensor -> what differs."""
    out = {}
    for name in expected.keys() | found.keys():
        a, b = expected.get(name), found.get(name)
        if a is None or b is None:
            out[name] = "only here" if a is None else "missing"
        elif a != b:
            out[name] = f"{b[0]} for {a[0]}" if a[0] != b[0] else f"other bytes in {a[0]}"
    return out


def compare(exe, folder, expected, only):
    known = json.loads(Path(expected).read_text())
    equal, total, faults = Counter(), Counter(), []
    for path in files(folder, only):
        for target, row in known.get(path.stem, {"targets": {}})["targets"].items():
            with tempfile.TemporaryDirectory() as d:
                o, imatrix = f"{d}/o.gguf", path.parent / "imatrix" / path.name
                flags = [*row.get("flags", []), *(["--imatrix", imatrix] if TARGETS[target] else [])]
                code, log = run([exe, "--to", target, path, "-o", o, "--quiet", *flags])
                if "error" in row:
                    print(f"{path.stem} {target}: llama-quantize stops ({row['error'][-1]}); ours exits {code}", flush=True)
                    continue
                total[target] += 1
                wrong = {"": log.strip()} if code else differences(row["tensors"], describe(o))
                if wrong:
                    faults.append(path.stem)
                    print(f"{path.stem} {target}: {len(wrong)} differ: {dict(sorted(wrong.items())[:4])}", flush=True)
                else:
                    equal[target] += 1
    for target in TARGETS:
        print(f"{target:10} {equal[target]} of {total[target]} files equal")
    return 1 if faults or not total else 0


def parse_types(log):
    """Tensor -> type in a dry run's log."""
    out = {}
    for line in log.splitlines():
        m = re.match(r"\[\s*\d+/\s*\d+\]\s+(\S+)\s+- \[.*\], type =\s*(\S+), size = ", line)
        if m:
            to = re.search(r"-> .*\((\S+)\)$", line)
            out[m[1]] = (to[1] if to else m[2]).upper()
    return out


def layered(name):
    """`blk.7.ffn_down.weight` -> (7, `blk.*.ffn_down.weight`)."""
    m = re.match(r"blk\.(\d+)\.(.*)$", name)
    return (int(m[1]), f"blk.*.{m[2]}") if m else (-1, name)


def facts(reader):
    """The metadata that decides on types."""
    arch = reader.fields["general.architecture"].contents()
    keys = "block_count expert_count attention.head_count attention.head_count_kv num_loops".split()
    return arch, {k: reader.fields[f"{arch}.{k}"].contents() for k in keys if f"{arch}.{k}" in reader.fields}


def types(exe, folder, out, only):
    """`parts`: name, source type and shape (outermost first), shared by all files. Per file: architecture, metadata that decides, layers (-1: none) by
    part, and per preset (`+`: with importance) one letter per tensor, by layer and name; `letters` names the types. Presets that agree share a row."""
    letters, parts, table = {}, {}, {}
    letter = lambda ty: letters.setdefault(ty, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"[len(letters)])
    for path in files(folder, only):
        reader = gguf.GGUFReader(path)
        imatrix = imatrix_of(reader, path)
        arch, known = facts(reader)
        tensors, order = {}, sorted(reader.tensors, key=lambda t: (layered(t.name)[0], t.name.encode()))
        for t in order:
            layer, part = layered(t.name)
            shape = "x".join(str(int(x)) for x in reversed(t.shape))
            tensors.setdefault(parts.setdefault(f"{part} {t.tensor_type.name} {shape}", len(parts)), []).append(layer)
        rows = {}
        for preset in GOLDEN:
            for mark, flags in ("", []), ("+", ["--imatrix", imatrix]):
                code, log = run([exe, "--dry-run", *flags, path, preset])
                if code == 0:
                    got = parse_types(log)
                    rows.setdefault("".join(letter(got[t.name]) for t in order), []).append(preset + mark)
        table[path.stem] = {"arch": arch, "facts": known, "tensors": [[k, *v] for k, v in tensors.items()], "types": {" ".join(v): k for k, v in rows.items()}}
        print(path.stem, len(order), len(rows), flush=True)
    one = lambda x: json.dumps(x, separators=(",", ":"))
    with open(out, "w") as f:
        made = "llama-quantize --dry-run (llama.cpp 0c1e57098) by tests/interop/gguf_to_gguf.py"
        f.write(f'{{"made_by":{one(made)},\n"letters":{one({v: k for k, v in letters.items()})},\n"parts":{one(list(parts))},\n"files":{{\n')
        f.write(",\n".join(f"{one(k)}:{one(v)}" for k, v in table.items()) + "\n}}\n")


def numbers(seed, n):
    """Pseudo-random numbers from -0.5 to 0.5 that are exact in float32; tests/presets_architectures.rs has the same."""
    x = np.arange(n, dtype=np.uint32) + np.uint32(seed * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in (16, 0x7FEB352D), (15, 0x846CA68B):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    return (x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)


def synthetic(reader, path, imatrix):
    """The same file with made-up weights, and an importance matrix to it. Tensors are numbered by layer and name."""
    w, m = gguf.GGUFWriter(path, ""), gguf.GGUFWriter(imatrix, "")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            value, kind = field.contents(), field.types[0]
            w.add_key_value(key, value, kind, field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    m.kv_data[0].clear()
    m.add_string("general.type", "imatrix")
    m.add_array("imatrix.datasets", ["random"])
    m.add_uint32("imatrix.chunk_count", 1)
    m.add_uint32("imatrix.chunk_size", 512)
    for i, t in enumerate(sorted(reader.tensors, key=lambda t: (layered(t.name)[0], t.name.encode()))):
        shape = [int(x) for x in reversed(t.shape)]
        w.add_tensor(t.name, numbers(i, int(np.prod(shape))).reshape(shape).astype({"F16": np.float16, "F32": np.float32}[t.tensor_type.name]))
        if t.name.endswith("weight") and len(shape) > 1:
            n = shape[0] if len(shape) > 2 else 1
            m.add_tensor(t.name + ".in_sum2", numbers(i + 100_000, n * shape[-1]).reshape(n, -1) + np.float32(0.625))
            m.add_tensor(t.name + ".counts", np.ones((n, 1), np.float32))
    for writer in w, m:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def hashes(exe, folder, out, only):
    """Per file of `only` and target: the first 16 digits of every tensor's sha256 by layer and name, for made-up weights."""
    table = {}
    for path in files(folder, only):
        table[path.stem] = {}
        with tempfile.TemporaryDirectory() as d:
            synthetic(gguf.GGUFReader(path), f"{d}/i.gguf", f"{d}/m.gguf")
            for target, needs in TARGETS.items():
                code, log = run([exe, *(["--imatrix", f"{d}/m.gguf"] if needs else []), f"{d}/i.gguf", f"{d}/o.gguf", target, "1"])
                assert code == 0, log[-1000:]
                got = sorted(describe(f"{d}/o.gguf").items(), key=lambda kv: (layered(kv[0])[0], kv[0].encode()))
                table[path.stem][target] = " ".join(sha[:16] for _, (_, sha) in got)
    Path(out).write_text(json.dumps(table, indent=0) + "\n")


if __name__ == "__main__":
    jobs = {"record": record, "compare": compare, "types": types, "hashes": hashes}
    if len(sys.argv) < 5 or sys.argv[1] not in jobs:
        sys.exit(__doc__)
    sys.exit(jobs[sys.argv[1]](*sys.argv[2:5], set(sys.argv[5:])))
