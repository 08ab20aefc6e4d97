"""Whole conversions beside llama.cpp's two programs: CPU seconds, wall seconds, peak memory, and the ratios with their spread over repeats.

Ours reads the checkpoint and writes the file; theirs is convert_hf_to_gguf.py to 16 bits and llama-quantize on what it wrote. The programs take
turns, so that a change of the machine's mood meets both. Prints Markdown and puts it between the `whole-program` marks of a document.

usage: whole_program.py --ours BIN --llama DIR --python PYTHON --model NAME=FOLDER,PRETOKENIZER,OUTTYPE,TYPE[+TYPE...] [--model ...]
                        [--repeats 3] [--threads 2] [--work DIR] [--write docs/benchmarks.md]

DIR holds llama.cpp's src/ (with convert_hf_to_gguf.py) and bin/llama-quantize; PYTHON has what the converter needs. Needs Linux; the
16-bit file and two more of the largest type must fit in the work folder.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
INTEROP = os.path.join(HERE, "..", "interop")


def run(command):
    """CPU seconds (user, system), wall seconds and peak resident megabytes of one program."""
    start = time.monotonic()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    errors = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        sys.exit(f"{' '.join(command)}\n{errors.decode(errors='replace')[-2000:]}")
    return {"user": usage.ru_utime, "sys": usage.ru_stime, "wall": time.monotonic() - start, "rss": usage.ru_maxrss * 1024 / 1e6}


def cpu(r):
    return r["user"] + r["sys"]


def spread(values, digits=2):
    """The middle value, and the range where there are several."""
    values = sorted(values)
    middle = values[len(values) // 2]
    if len(values) == 1:
        return f"{middle:.{digits}f}"
    return f"{middle:.{digits}f} ({values[0]:.{digits}f} to {values[-1]:.{digits}f})"


def best(runs):
    return min(runs, key=cpu)


def identical(python, ours, theirs):
    result = subprocess.run([python, os.path.join(INTEROP, "compare_gguf.py"), ours, theirs], capture_output=True, text=True)
    line = result.stdout.splitlines()[0] if result.stdout else "?"
    return line.split(": ")[-1].replace(" tensors identical", "")


def measure(options, name, folder, pre, outtype, types, work):
    wide = os.path.join(work, "wide.gguf")
    mine, peer = os.path.join(work, "ours.gguf"), os.path.join(work, "peer.gguf")
    convert = [options.python, os.path.join(INTEROP, "peer_convert.py"), os.path.join(options.llama, "src"), pre, folder,
               "--outfile", wide, "--outtype", outtype]
    threads = str(options.threads)
    runs = {kind: {t: [] for t in types} for kind in ("ours", "no hash", "quantize")}
    converts, equal = [], {}
    for repeat in range(options.repeats):
        if os.path.exists(wide):
            os.remove(wide)
        converts.append(run(convert))
        for t in types:
            own = [options.ours, "--to", t.lower(), folder, "-o", mine, "--force", "-t", threads, "--quiet"]
            runs["ours"][t].append(run(own))
            runs["no hash"][t].append(run([*own, "--no-source-hash"]))
            runs["quantize"][t].append(run([os.path.join(options.llama, "bin", "llama-quantize"), wide, peer, t, threads]))
            if t not in equal:
                equal[t] = identical(options.python, mine, peer)
                print(f"{name} {t}: {equal[t]} tensors identical", file=sys.stderr)
        print(f"{name}: repeat {repeat + 1} of {options.repeats}", file=sys.stderr)
    for path in (wide, mine, peer):
        os.remove(path)

    rows = [f"{name}, {options.threads} threads, {options.repeats} repeats; CPU is user + system of the best run, ratios are ours to "
            "theirs: the middle of the repeats and their range.", "",
            "| type | ours, CPU s | without hashes | llama.cpp, CPU s | ratio of CPU | ratio of wall | ours, peak | theirs, peak | identical tensors |",
            "|---|---|---|---|---|---|---|---|---|"]
    for t in types:
        own, bare, quantize = runs["ours"][t], runs["no hash"][t], runs["quantize"][t]
        both = list(zip(own, converts, quantize))
        a, b, c, d = best(own), best(bare), best(converts), best(quantize)
        rows.append(
            f"| {t} | {a['user']:.1f} + {a['sys']:.1f} | {b['user']:.1f} + {b['sys']:.1f} | {cpu(c):.1f} + {cpu(d):.1f} "
            f"| {spread([cpu(o) / (cpu(c) + cpu(q)) for o, c, q in both], 3)} "
            f"| {spread([o['wall'] / (c['wall'] + q['wall']) for o, c, q in both], 3)} "
            f"| {max(r['rss'] for r in own):.0f} MB | {max(r['rss'] for r in converts):.0f}, {max(r['rss'] for r in quantize):.0f} MB | {equal[t]} |")
    return rows


def write(path, text):
    begin, end = "<!-- whole-program -->", "<!-- /whole-program -->"
    with open(path) as f:
        page = f.read()
    head, rest = page.split(begin)
    _, tail = rest.split(end)
    with open(path, "w") as f:
        f.write(f"{head}{begin}\n{text}\n{end}{tail}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--ours", required=True)
    p.add_argument("--llama", required=True)
    p.add_argument("--python", required=True)
    p.add_argument("--model", action="append", required=True)
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--work")
    p.add_argument("--write")
    options = p.parse_args()
    sections = []
    for model in options.model:
        name, rest = model.split("=", 1)
        folder, pre, outtype, types = rest.split(",")
        with tempfile.TemporaryDirectory(dir=options.work) as work:
            sections.append("\n".join(measure(options, name, folder, pre, outtype, types.split("+"), work)))
    text = "\n\n".join(sections)
    print(text)
    if options.write:
        write(options.write, text)


main()
