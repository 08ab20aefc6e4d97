"""Runs are killed (SIGKILL) at random moments, and gone on with: the end has to be that of an undisturbed run.

usage: random_kills.py BIN MODEL N [SEED [KIND ...]]
MODEL: a folder of tests/conformance; N: kills, over all kinds of run in turn, or over those named

Every kind is run once undisturbed, for its bytes and its time. Then it is started, killed after a random part of that time,
and started again (with --resume, where the kind knows it, in every second try) until one run comes to its end; each of
those but the last may be killed too. Looked at: exit codes, the bytes of all outputs, and what is left beside them. What is
pushed goes to a Hub on the loopback; in the end it has to have every file of the release, and nothing half sent.
"""
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import writing_hub

binary, model, kills = os.path.abspath(sys.argv[1]), os.path.abspath(sys.argv[2]), int(sys.argv[3])
rng = random.Random(int(sys.argv[4]) if len(sys.argv) > 4 else 1)
DATA = ["--calibration", "default", "--calibration-tokens", "512", "--seq-len", "32"]
TEXT = ["--text", __file__, "--ctx", "64", "--chunks", "4"]
PLAIN = ["--rounding", "nearest", "--no-check"]
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
    "calibrate, text": (["calibrate", model, *DATA, "--checkpoint-every", "0", "--save-text", "t.txt"], "i.gguf", True, None),
    "hessians": (["calibrate", model, *DATA, "--hessians"], "h.gguf", False, None),
    "hessians, text": (["calibrate", model, *DATA, "--hessians", "--save-text", "t.txt"], "h.gguf", False, None),
    # The output's place is named where OUT stands.
    "stored logits": (["eval", model, *TEXT, "--save-logits", "OUT"], "base.kld", False, None),
    "logits and report": (["eval", model, *TEXT, "--save-logits", "base.kld", "--report", "OUT"], "r.json", False, None),
    "compare": (["compare", model, model, *TEXT, "--report", "OUT"], "r.json", False, None),
    "reports": (["compare", model, model, *TEXT, "--report", "OUT", "--report", "r.html", "--report", "r.md"], "r.json", False, None),
    "measured": (["--to", "q8_0,fp8", model, *TEXT, "--report", "r.json", "--report", "r.md"], "out/", True, None),
    "release": (["release", model, "--to", "q4_0,fp8", *PLAIN], "out", True, None),
    "release replaced": (["release", model, "--to", "q4_0,fp8", *PLAIN, "--force"], "out", True, "q8_0,q4_0"),
}
WANTED = sys.argv[5:] or [*KINDS, "push"]


# What is unfinished of a folder is continued or replaced, and never passed over.
ASK = ("gptq", "awq", "file and folder", "measured", "release")


def tree(folder):
    files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): digest(p) for p in files}


def digest(path):
    """Of a report: of all but when it was made and how long that took, of a rendered one that it is whole."""
    if path.name == "r.json":
        report = json.loads(path.read_text())
        return hashlib.sha256(json.dumps(lasting(report), sort_keys=True).encode()).hexdigest()
    if path.name in ("r.html", "r.md"):
        return path.read_text().rstrip()[-7:] if path.suffix == ".html" else path.read_text()[:2]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lasting(value):
    if isinstance(value, dict):
        return {k: lasting(v) for k, v in value.items() if not any(word in k for word in ("second", "created", "rss"))}
    return [lasting(v) for v in value] if isinstance(value, list) else value


def run(folder, args, output, after=None, **env):
    to = [] if output is None or "OUT" in args else ["-o", output]
    command = [binary, *(output if arg == "OUT" else arg for arg in args), *to, "--quiet", "-t", "2"]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | env
    )
    try:
        out, _ = process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        out, _ = process.communicate()
    return process.returncode, out.decode(errors="replace")


def prepared(folder, args, output, older):
    if older:
        split = ["--split-max-tensors", "9"] if "--split-max-tensors" in args else []
        make = ["release", model, "--to", older, *PLAIN] if args[0] == "release" else ["--to", older, model, *split]
        code, out = run(folder, make, output)
        assert code == 0, out


def pushes(kills):
    """Kills pushes of one release; how many, of how many, and how many ended badly."""
    done = bad = tries = 0
    with tempfile.TemporaryDirectory() as folder:
        args = ["release", model, "--to", "q8_0,q4_0,fp8", "--rounding", "nearest", "--no-check"]
        code, out = run(folder, args, "out")
        assert code == 0, out
        right, seconds = None, 0
        while right is None or done < kills:
            repository, address = writing_hub.serve()
            env = {"HF_ENDPOINT": address, "HF_TOKEN": "hf_x", "HF_HOME": os.path.join(folder, "hf")}
            begin = time.time()
            for attempt in range(6):
                after = rng.uniform(0, 1.1) * seconds if attempt < 5 and right else None
                code, out = run(folder, ["push", "out", "org/name"], None, after, **env)
                if code != -signal.SIGKILL:
                    break
                done += 1
            found = repository.content()
            if right is None:
                assert code == 0 and len(found) > 3, out
                right, seconds = found, time.time() - begin
                continue
            tries += 1
            if code != 0 or found != right or repository.faults or repository.commits > 1:
                bad += 1
                odd = sorted(k for k in found.keys() | right.keys() if found.get(k) != right.get(k))
                print(f"push: exit {code}, differs in {odd}, {repository.faults}, {repository.commits} commits: {out.strip()[-300:]}", flush=True)
    return done, tries, bad


def main():
    right, seconds = {}, {}
    kinds = {name: KINDS[name] for name in WANTED if name in KINDS}
    for name, (args, output, _, older) in kinds.items():
        with tempfile.TemporaryDirectory() as folder:
            prepared(folder, args, output, older)
            begin = time.time()
            code, out = run(folder, args, output)
            assert code == 0, (name, out)
            seconds[name], right[name] = time.time() - begin, tree(folder)
    done = bad = tries = 0
    if "push" in WANTED:
        done, tries, bad = pushes(-(-kills // (len(kinds) + 1)))
    while kinds and done < kills:
        for name, (args, output, resumes, older) in kinds.items():
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
    print(f"{done} kills in {tries} runs of {len(WANTED)} kinds, {bad} bad ends")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
