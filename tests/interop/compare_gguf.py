"""Compares two GGUF files tensor by tensor: names, types, shapes and bytes. Exit code 1 when anything differs.

usage: compare_gguf.py OURS THEIRS [--metadata]     (needs the PyPI package gguf)
"""
import sys

from gguf import GGUFReader

ours, theirs = (GGUFReader(p) for p in sys.argv[1:3])
a, b = ({t.name: t for t in r.tensors} for r in (ours, theirs))
bad = [f"only in one file: {n}" for n in a.keys() ^ b.keys()]
equal = 0
for name in a.keys() & b.keys():
    x, y = a[name], b[name]
    if (x.tensor_type, list(x.shape)) != (y.tensor_type, list(y.shape)):
        bad.append(f"{name}: {x.tensor_type.name} {list(x.shape)} against {y.tensor_type.name} {list(y.shape)}")
    elif x.data.tobytes() != y.data.tobytes():
        p, q = x.data.reshape(-1).view("u1"), y.data.reshape(-1).view("u1")
        bad.append(f"{name} ({x.tensor_type.name}): {int((p != q).sum())} of {p.size} bytes differ")
    else:
        equal += 1
if "--metadata" in sys.argv:
    value = lambda r, k: r.fields[k].contents() if k in r.fields else None
    for key in sorted(ours.fields.keys() | theirs.fields.keys()):
        if key.startswith("GGUF.") or value(ours, key) == value(theirs, key):
            continue
        print(f"metadata {key}: {str(value(ours, key))[:80]!r} against {str(value(theirs, key))[:80]!r}")
print(f"{sys.argv[1]}: {equal} of {len(a)} tensors identical")
print("\n".join(sorted(bad)[:40]))
sys.exit(bool(bad))
