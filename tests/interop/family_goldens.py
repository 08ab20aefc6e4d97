"""Makes the goldens of tests/golden/families: what llama.cpp's converter makes of a checkpoint of each architecture, whose weights
need not be kept, because a generator makes them.

usage: family_goldens.py generate CHECKPOINTS OUT     copies checkpoints, their weights replaced by generated ones
       family_goldens.py collect OUT GOLDENS          one file per checkpoint that has an expected_gguf.json (families_to_gguf.py says
                                                      what that is; llama.cpp's converter is run in between)      (needs numpy)

A float is made of 64 bits of splitmix64 seeded with the FNV-1a hash of the tensor's name: the lowest is its sign, three give an
exponent from -7 to 0, and the next ones the mantissa. Bytes are the lowest eight bits; scales of a byte lie from 112 to 127. Integers of
eight bytes are kept in the golden.
"""
import hashlib, json, os, shutil, struct, sys
import numpy as np

SKIP = ("expected", "preprocessor_config.json", "README")


def words(name, n):
    seed = 0xcbf29ce484222325
    for byte in name.encode(): seed = (seed ^ byte) * 0x100000001b3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        return z ^ (z >> np.uint64(31))


def values(name, dtype, shape):
    w = words(name, int(np.prod(shape)))
    sign, exponent, rest = w & np.uint64(1), w >> np.uint64(1) & np.uint64(7), w >> np.uint64(4)
    floats = {"F16": (15, 8, 10, np.uint16), "BF16": (15, 120, 7, np.uint16), "F32": (31, 120, 23, np.uint32)}
    if dtype in floats:
        top, low, mantissa, kind = floats[dtype]
        bits = sign << np.uint64(top) | (exponent + np.uint64(low)) << np.uint64(mantissa) | rest & np.uint64(2**mantissa - 1)
        return bits.astype(kind).tobytes()
    if dtype == "F8_E8M0" or name.endswith("_scales"): return ((w & np.uint64(15)) + np.uint64(112)).astype(np.uint8).tobytes()
    if dtype in ("U8", "I8"): return w.astype(np.uint8).tobytes()
    raise SystemExit(f"{name} is {dtype}")


def header(path):
    with open(path, "rb") as f:
        size = struct.unpack("<Q", f.read(8))[0]
        return {k: v for k, v in json.loads(f.read(size)).items() if k != "__metadata__"}, 8 + size


def generate(source, out):
    """Replaces the data of a safetensors file, tensor by tensor in its own layout."""
    entries, base = header(source)
    with open(source, "rb") as f: data = bytearray(f.read())
    for name, e in entries.items():
        begin, end = (base + at for at in e["data_offsets"])
        if e["dtype"] != "I64": data[begin:end] = values(name, e["dtype"], e["shape"])
    with open(out, "wb") as f: f.write(data)


def files(folder):
    for base, _, names in sorted(os.walk(folder)):
        for name in sorted(names):
            path = os.path.relpath(os.path.join(base, name), folder)
            if not name.startswith(SKIP): yield path


command, source, out = sys.argv[1:]
os.makedirs(os.path.join(out, "files"), exist_ok=True) if command == "collect" else None
for name in sorted(os.listdir(source)):
    folder = os.path.join(source, name)
    if not os.path.isfile(os.path.join(folder, "config.json" if command == "generate" else "expected_gguf.json")): continue
    if command == "generate":
        for path in files(folder):
            to = os.path.join(out, name, path)
            os.makedirs(os.path.dirname(to), exist_ok=True)
            (generate if path.endswith(".safetensors") else shutil.copy)(os.path.join(folder, path), to)
        expected = os.path.join(folder, "expected.json")            # the converter's arguments
        if os.path.isfile(expected): shutil.copy(expected, os.path.join(out, name))
        continue
    golden = {"files": {}, "weights": {}}
    for path in files(folder):
        full = os.path.join(folder, path)
        if path.endswith(".safetensors"):
            entries, base = header(full)
            with open(full, "rb") as f: data = f.read()
            golden["weights"][path] = tensors = {}
            for tensor, e in entries.items():
                begin, end = (base + at for at in e["data_offsets"])
                kept = [np.frombuffer(data[begin:end], "<i8").tolist()] if e["dtype"] == "I64" else []
                tensors[tensor] = [e["dtype"], e["shape"], *kept]
                if not kept: assert data[begin:end] == values(tensor, e["dtype"], e["shape"]), tensor
            continue
        with open(full, "rb") as f: data = f.read()
        stored = hashlib.sha256(data).hexdigest()[:12] + os.path.splitext(path)[1]
        golden["files"][path] = stored
        with open(os.path.join(out, "files", stored), "wb") as f: f.write(data)
    with open(os.path.join(folder, "expected_gguf.json")) as f: expected = json.load(f)
    golden["metadata"] = {k: [*v["type"], v["value"]] for k, v in expected["metadata"].items()}
    golden["tensors"] = {t["name"]: [t["type"], t["shape"], t["sha256"][:16]] for t in expected["tensors"]}
    golden = json.loads(json.dumps(golden), parse_constant=str)         # infinities as text
    one = lambda x: json.dumps(x, ensure_ascii=False, separators=(",", ":"))
    with open(os.path.join(out, name + ".json"), "w") as f:
        f.write("{\n" + ",\n".join(f"{one(k)}:{one(v)}" for k, v in golden.items()) + "\n}\n")
