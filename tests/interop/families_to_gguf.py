"""Converts checkpoints to F16 GGUF files and compares them with what llama.cpp's converter made of the same: names, shapes, types and
SHA-256 of every tensor, and all metadata.

usage: families_to_gguf.py BIN CHECKPOINTS [NAME ...]     (needs numpy)

CHECKPOINTS  folders that each hold an expected_gguf.json: {"metadata": {key: {"type": [...], "value": ...}}, "tensors": [{"name", "shape",
             "type", "sha256"}]}, with arrays of more than eight entries as length, first four and sha256 of their JSON
"""
import hashlib, json, os, struct, subprocess, sys, tempfile

GGML = {0: "F32", 1: "F16", 8: "Q8_0", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16", 39: "MXFP4"}
SIZES = {0: (1, 4), 1: (1, 2), 8: (32, 34), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 30: (1, 2), 39: (32, 17)}
SCALARS = {0: ("B", "UINT8"), 1: ("b", "INT8"), 2: ("H", "UINT16"), 3: ("h", "INT16"), 4: ("I", "UINT32"), 5: ("i", "INT32"), 6: ("f", "FLOAT32"),
           7: ("?", "BOOL"), 10: ("Q", "UINT64"), 11: ("q", "INT64"), 12: ("d", "FLOAT64")}


def read(path):
    with open(path, "rb") as f: data = f.read()
    at = 4 + 4

    def take(fmt):
        nonlocal at
        value = struct.unpack_from("<" + fmt, data, at)[0]
        at += struct.calcsize("<" + fmt)
        return value

    def text():
        nonlocal at
        n = take("Q")
        at += n
        return data[at - n:at].decode("utf-8", "replace")

    def value(kind):
        if kind == 8: return text(), ["STRING"]
        if kind == 9:
            inner, n = take("I"), take("Q")
            items = [value(inner)[0] for _ in range(n)]
            return items, ["ARRAY", "STRING" if inner == 8 else SCALARS[inner][1]]
        return take(SCALARS[kind][0]), [SCALARS[kind][1]]

    tensors, pairs = take("Q"), take("Q")
    metadata = {}
    for _ in range(pairs):
        key = text()
        metadata[key] = value(take("I"))
    infos = [(text(), [take("Q") for _ in range(take("I"))], take("I"), take("Q")) for _ in range(tensors)]
    base = (at + 31) // 32 * 32
    found = []
    for name, shape, kind, offset in infos:
        n = 1
        for d in shape: n *= d
        per, size = SIZES[kind]
        raw = data[base + offset:base + offset + n // per * size]
        found.append(dict(name=name, shape=shape, type=GGML[kind], sha256=hashlib.sha256(raw).hexdigest()))
    return metadata, found


def short(value):
    if isinstance(value, list) and len(value) > 8:
        return dict(length=len(value), head=value[:4], sha256=hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest())
    return value


def compare(expected, path):
    metadata, tensors = read(path)
    wrong = []
    ours, theirs = {t["name"]: t for t in tensors}, {t["name"]: t for t in expected["tensors"]}
    for name in theirs.keys() | ours.keys():
        a, b = ours.get(name), theirs.get(name)
        if a is None or b is None: wrong.append(f"tensor {name}: {'missing' if a is None else 'extra'}")
        else: wrong += [f"tensor {name}: {k} {a[k]} for {b[k]}" for k in ("shape", "type", "sha256") if a[k] != b[k]]
    own = lambda k: k.startswith("quantize.") or k in ("general.quantization_version", "general.name", "general.basename", "general.size_label",
                                                       "general.finetune", "general.version")
    for key in [k for k in expected["metadata"].keys() | metadata.keys() if not own(k)]:
        a, b = metadata.get(key), expected["metadata"].get(key)
        if a is None or b is None: wrong.append(f"key {key}: {'missing, ' + str(b['value'])[:80] if a is None else 'extra, ' + str(a[0])[:80]}")
        elif short(a[0]) != b["value"] or a[1] != b["type"]:
            wrong.append(f"key {key}: {str(short(a[0]))[:90]} {a[1]} for {str(b['value'])[:90]} {b['type']}")
    return sorted(wrong)


def main():
    binary, root, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    good, folders = 0, [n for n in names or sorted(os.listdir(root)) if os.path.isfile(os.path.join(root, n, "expected_gguf.json"))]
    with tempfile.TemporaryDirectory() as out:
        for name in folders:
            folder, made = os.path.join(root, name), os.path.join(out, "made.gguf")
            with open(os.path.join(folder, "expected_gguf.json")) as f: expected = json.load(f)
            pre = expected["metadata"].get("tokenizer.ggml.pre", {}).get("value")
            pre = ["--pretokenizer", pre] if pre not in (None, "default") else []
            run = subprocess.run([binary, "--to", "f16", folder, "-o", made, "--force", "--quiet", *pre], capture_output=True, text=True)
            if run.returncode: wrong = [f"exit {run.returncode}: {run.stderr.strip().splitlines()[0][:300] if run.stderr.strip() else ''}"]
            else: wrong = compare(expected, made)
            good += not wrong
            print(f"{name}: {'equal' if not wrong else f'{len(wrong)} differences'}", *wrong[:12], sep="\n  ", flush=True)
    print(f"{good} of {len(folders)} equal")


if __name__ == "__main__": main()
