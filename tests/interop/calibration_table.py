"""The table of calibration: files of several types, made with no importance matrix and with matrices of several texts, by
`quantize` and by llama-imatrix with llama-quantize on the text of the same windows; scored together by `quantize compare`.
Finished steps are kept in WORK, so that an interrupted run goes on. Prints Markdown.

Usage: calibration_table.py QUANTIZE LLAMA_BIN F16.gguf CALIB.txt EVAL.txt WORK [--tokens]

QUANTIZE   the binary; LLAMA_BIN: a folder with llama-imatrix and llama-quantize
--tokens   instead: the loss of IQ3_S and Q3_K_S by the number of calibration tokens
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gguf

TYPES = "Q4_K_M Q4_K_S IQ4_XS Q3_K_M Q3_K_S IQ3_S IQ2_M Q2_K".split()
DATA = ["none", "default", "calib", "self"]
# Sampling is slower than reading.
TOKENS = {"default": "65536", "calib": "65536", "self": "16384"}
# llama-quantize refuses it.
IMPOSSIBLE = {("IQ2_M", "none")}
# Made by llama-quantize with our matrix too: the same bytes.
CROSS = {("Q4_K_M", "default"), ("IQ3_S", "default")}
CHUNKS = "40"
THREADS = os.environ.get("THREADS", "2")


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-3000:]}")
    return done.stdout


def once(path, *command):
    """Runs the command, in which TMP stands for what becomes `path`, unless that is there."""
    if not path.exists():
        print(path.name, file=sys.stderr, flush=True)
        tmp = path.with_name("tmp-" + path.name)
        tmp.unlink(missing_ok=True)
        run(*(tmp if c == "TMP" else c for c in command))
        tmp.rename(path)
    return path


def tensors(path):
    """One hash over all tensors: names, types and bytes."""
    digest = hashlib.sha256()
    for t in sorted(gguf.GGUFReader(path).tensors, key=lambda t: t.name):
        digest.update(f"{t.name} {t.tensor_type.name}\n".encode())
        digest.update(t.data.tobytes())
    return digest.hexdigest()


def scores(base, files, name, work, text, quantize):
    """Results by file and the base's, from one lock-step run."""
    out = work / f"scores-{name}.json"
    once(out, quantize, "compare", base, *files, "--text", text, "--chunks", CHUNKS, "-t", THREADS, "--quiet", "--force", "--report", "TMP")
    report = json.loads(out.read_text())
    return {"base": report["base"], **{file.name: row for file, row in zip(files, report["candidates"])}}


def ours(quantize, f16, source, work, name, tokens):
    out, text = work / f"ours-{name}.imatrix.gguf", work / f"windows-{name}.txt"
    once(out, quantize, "calibrate", f16, "--calibration", source, "--calibration-tokens", tokens, "-t", THREADS, "--quiet", "--save-text", text, "-f", "-o", "TMP")
    return out, text


def main():
    quantize, llama, f16, calib, text, work = [Path(p).resolve() for p in sys.argv[1:7]]
    work.mkdir(exist_ok=True)
    sources = {"default": "default", "calib": calib, "self": "self"}
    if sys.argv[7:] == ["--tokens"]:
        by_tokens(quantize, f16, sources, text, work)
    else:
        table(quantize, llama, f16, sources, text, work)


def table(quantize, llama, f16, sources, text, work):
    made, hashes, first, found = {}, {}, {}, {}
    for data in DATA:
        matrices = [None, None]
        if data != "none":
            matrix, windows = ours(quantize, f16, sources[data], work, data, TOKENS[data])
            peer = work / f"peer-{data}.imatrix.gguf"
            once(peer, llama / "llama-imatrix", "-m", f16, "-f", windows, "-c", "512", "-t", THREADS, "-o", "TMP")
            matrices = [matrix, peer]
        for ty in TYPES:
            if (ty, data) in IMPOSSIBLE:
                continue
            us, them = [work / f"{side}-{ty}-{data}.gguf" for side in ("ours", "peer")]
            own, other = [["--imatrix", m] if m else [] for m in matrices]
            once(us, quantize, "--to", ty, f16, "-t", THREADS, "--quiet", *own, "-f", "-o", "TMP")
            once(them, llama / "llama-quantize", *other, f16, "TMP", ty, THREADS)
            for file in (us, them):
                hashes[file.name] = tensors(file)
                made[ty, data, file == us] = file
            if (ty, data) in CROSS:
                same = work / "same.gguf"
                run(llama / "llama-quantize", *own, f16, same, ty, THREADS)
                assert tensors(same) == hashes[us.name], f"{us.name}: other bytes than llama-quantize's"
                same.unlink()
        # Files with the same tensors are scored once.
        new = [f for (_, d, _), f in made.items() if d == data and first.setdefault(hashes[f.name], f) == f]
        found |= scores(f16, new, data, work, text, quantize)
    print(f"F16 perplexity {found['base']['ppl']['value']:.2f}")
    print("| type | MB | calibration | ours: KL | perplexity | llama.cpp: KL | perplexity | KL ratio |\n|---|---|---|---|---|---|---|---|")
    for ty in TYPES:
        for data in DATA:
            if (ty, data) in IMPOSSIBLE:
                continue
            us, them = made[ty, data, True], made[ty, data, False]
            a, b = [found[first[hashes[f.name]].name] for f in (us, them)]
            size = us.stat().st_size / 1e6
            peer = "identical file | | 1" if a is b else f"{kl(b)} | {ppl(b)} | {mean(a) / mean(b):.3f}"
            print(f"| {ty} | {size:.1f} | {data} | {kl(a)} | {ppl(a)} | {peer} |")


def by_tokens(quantize, f16, sources, text, work):
    names = {}
    for tokens in (4096, 16384, 65536, 131072):
        for data in ("calib", "default"):
            # The bundled texts have not many more.
            if data == "default" and tokens > 65536:
                continue
            matrix, _ = ours(quantize, f16, sources[data], work, f"{data}-{tokens}", str(tokens))
            for ty in ("Q3_K_S", "IQ3_S"):
                file = work / f"ours-{ty}-{data}-{tokens}.gguf"
                names[tokens, data, ty] = once(file, quantize, "--to", ty, f16, "-t", THREADS, "--quiet", "--imatrix", matrix, "-f", "-o", "TMP")
    found = scores(f16, list(names.values()), "tokens", work, text, quantize)
    print("| tokens | data | Q3_K_S: KL | IQ3_S: KL |\n|---|---|---|---|")
    for tokens, data in dict.fromkeys((t, d) for t, d, _ in names):
        cells = [kl(found[names[tokens, data, ty].name]) for ty in ("Q3_K_S", "IQ3_S")]
        print(f"| {tokens:,} | {data} | {' | '.join(cells)} |")


def mean(row):
    return row["stats"]["kld"]["value"]


def kl(row):
    return f"{mean(row):.4f} ± {row['stats']['kld']['std_error']:.4f}"


def ppl(row):
    return f"{row['stats']['ppl']['value']:.2f}"


main()
