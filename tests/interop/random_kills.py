"""Runs are killed (SIGKILL) at random moments, and gone on with: the end has to be that of an undisturbed run.

usage: random_kills.py BIN MODEL N [SEED]     MODEL: a folder of tests/conformance; N: kills, over all kinds of run in turn

Every kind is run once undisturbed, for its bytes and its time. Then it is started, killed after a random part of that time,
and started again (with --resume, where the kind knows it, in every second try) until one run comes to its end; each of
those but the last may be killed too. Looked at: exit codes, the bytes of all outputs, and what is left beside them.
"""
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

binary, model, kills = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), int(sys.argv[3])
rng = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 1)
DATA = ["--calibration", "default", "--calibration-tokens", "512", "--seq-len", "32"]
# Name: arguments, output, whether --resume is known to it, whether it replaces an output of another recipe.
KINDS = {
    "files": (["--to", "q8_0,q4_0", model, "--modelfile"], "out/", False, None),
    "shards replaced": (["--to", "q4_0", model, "--split-max-tensors", "9", "--force"], "m.gguf", False, "q8_0"),
    "feedback": (["--to", "q4_0,q5_0", model, *DATA, "--save-imatrix", "i.gguf"], "out/", True, None),
    "feedback, shards": (["--to", "q4_0", model, *DATA, "--split-max-tensors", "9"], "m.gguf", True, None),
    "folder replaced": (["--to", "fp8", model, "--force"], "m", False, "nf4"),
    "gptq": (["--to", "gptq-32g", model, *DATA], "m", True, None),
    "awq": (["--to", "awq-32g", model, *DATA], "m", True, None),
    "file and folder": (["--to", "q4_0,fp8", model], "out/", True, None),
    "calibrate": (["calibrate", model, *DATA, "--checkpoint-every", "0"], "i.gguf", True, None),
    "hessians": (["calibrate", model, *DATA, "--hessians"], "h.gguf", False, None),
}


# What is unfinished of a folder is continued or replaced, and never passed over.
ASK = ("gptq", "awq", "file and folder")


def tree(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def run(folder, args, output, after=None):
    command = [binary, *args, "-o", output, "--quiet", "-t", "2"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        out, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
    return process.returncode, out.decode(errors="replace")


def prepared(folder, args, output, older):
    if older:
        split = ["--split-max-tensors", "9"] if "--split-max-tensors" in args else []
        code, out = run(folder, ["--to", older, model, *split], output)
        assert code == 0, out


def main():
    right, seconds = {}, {}
    for name, (args, output, _, older) in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            prepared(folder, args, output, older)
            begin = time.time()
            code, out = run(folder, args, output)
            assert code == 0, (name, out)
            seconds[name], right[name] = time.time() - begin, tree(folder)
    done = bad = tries = 0
    while done < kills:
        for name, (args, output, resumes, older) in KINDS.items():
            tries += 1
            with tempfile.TemporaryDirectory() as folder:
                prepared(folder, args, output, older)
                more = []
                for attempt in range(6):
                    code, out = run(folder, [*args, *more], output, rng.uniform(0, 1.1) * seconds[name] if attempt < 5 else None)
                    more = ["--resume"] if resumes and (rng.random() < 0.5 or name in ASK) else []
                    if code != -signal.SIGKILL:
                        break
                    done += 1
                found = tree(folder)
                if code != 0 or found != right[name]:
                    # A run that had finished before it was killed leaves nothing to do but to say so.
                    if code == 2 and "exists" in out and found == right[name]:
                        continue
                    bad += 1
                    odd = sorted(k for k in found.keys() | right[name].keys() if found.get(k) != right[name].get(k))
                    print(f"{name}: exit {code}, differs in {odd}: {out.strip()[-300:]}", flush=True)
    print(f"{done} kills in {tries} runs of {len(KINDS)} kinds, {bad} bad ends")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
