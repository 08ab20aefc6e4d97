"""Makes the goldens of tests/golden/projectors: what llama.cpp's converter writes with --mmproj of the checkpoints of tests/golden/families that
see images, in each type.

usage: projector_goldens.py CHECKPOINTS GGUF OUT [--whole]

CHECKPOINTS  folders as `family_goldens.py generate` makes them, with their preprocessor_config.json
--whole      for checkpoints that are not among tests/golden/families: config.json and the shapes of tensors go to the golden, too
GGUF         GGUF/f16/mmproj-NAME.gguf, and the same for bf16, q8_0 and f32
"""
import json, os, struct, sys
from families_to_gguf import read, short

checkpoints, files, out, *whole = sys.argv[1:]
one = lambda x: json.dumps(x, ensure_ascii=False, separators=(",", ":"))
os.makedirs(out, exist_ok=True)
for name in sorted(os.listdir(checkpoints)):
    path = lambda outtype: os.path.join(files, outtype, f"mmproj-{name}.gguf")
    if not os.path.isfile(path("f16")): continue
    golden = {}
    if whole:
        with open(os.path.join(checkpoints, name, "model.safetensors"), "rb") as f: header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
        golden["weights"] = {"model.safetensors": {k: [e["dtype"], e["shape"]] for k, e in header.items() if k != "__metadata__"}}
    for file in ("preprocessor_config.json", "processor_config.json", *(["config.json"] if whole else [])):
        if os.path.isfile(os.path.join(checkpoints, name, file)):
            with open(os.path.join(checkpoints, name, file)) as f: golden.setdefault("files", {})[file] = json.load(f)
    for outtype in ("f16", "bf16", "q8_0", "f32"):
        metadata, tensors = read(path(outtype))
        tensors = {t["name"]: [t["type"], t["shape"], t["sha256"][:16]] for t in tensors}
        if outtype == "f16":
            golden["metadata"] = {k: [*kind, short(v)] for k, (v, kind) in metadata.items()}
            golden["f16"] = first = tensors
            continue
        assert list(tensors) == list(first)
        golden[outtype] = {"file_type": metadata["general.file_type"][0], "tensors": {k: v for k, v in tensors.items() if v != first[k]}}
    with open(os.path.join(out, name + ".json"), "w") as f:
        f.write("{\n" + ",\n".join(f"{one(k)}:{one(v)}" for k, v in golden.items()) + "\n}\n")
