"""Makes tests/golden/mtp.json: how llama.cpp's conversions without, and of nothing but, the layers that predict more than the next token differ
from those of tests/golden/families: metadata that is other (null: not there), and the names of the tensors.

usage: mtp_goldens.py FAMILIES DROP ONLY OUT

FAMILIES    tests/golden/families
DROP, ONLY  folders of checkpoints with an expected_gguf.json of a conversion with --no-mtp, and with --mtp
"""
import json, os, sys

families, drop, only, out = sys.argv[1:]
golden = {}
for mode, root in (("drop", drop), ("only", only)):
    for name in sorted(os.listdir(root)):
        path = os.path.join(root, name, "expected_gguf.json")
        if not os.path.isfile(path): continue
        with open(path) as f: made = json.load(f)
        with open(os.path.join(families, name + ".json")) as f: family = json.load(f)
        metadata = json.loads(json.dumps({k: [*v["type"], v["value"]] for k, v in made["metadata"].items()}), parse_constant=str)
        tensors = {t["name"]: [t["type"], t["shape"], t["sha256"][:16]] for t in made["tensors"]}
        assert all(family["tensors"].get(k) == v for k, v in tensors.items()), name
        keys = [k for k in {**family["metadata"], **metadata} if family["metadata"].get(k) != metadata.get(k)]
        golden.setdefault(name, {})[mode] = {"metadata": {k: metadata.get(k) for k in keys}, "tensors": list(tensors)}
one = lambda x: json.dumps(x, ensure_ascii=False, separators=(",", ":"))
with open(out, "w") as f: f.write("{\n" + ",\n".join(f"{one(k)}:{one(v)}" for k, v in golden.items()) + "\n}\n")
