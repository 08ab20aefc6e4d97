"""Every checkpoint format through the engine that it is made for: writes the folder with `quantize`, lets the engine say
its perplexity (engine_perplexity.py) and then `quantize eval`, on the same windows. Finished steps are kept in WORK.
Prints Markdown.

Usage: engines.py QUANTIZE SOURCE CALIB.txt EVAL.txt WORK [CHUNKS] [FORMAT...]

TRANSFORMERS, COMPRESSED, BITSANDBYTES, VLLM, MLX: the Python interpreters that have transformers with gptqmodel,
with compressed-tensors, with bitsandbytes; vLLM; mlx-lm. Rows whose interpreter is not named are left out.
TOKENS: how many to calibrate on, 32768 unless named.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

# Format, whether calibrated, and (interpreter, what engine_perplexity.py runs, type it computes in).
HF, CT, BNB = [("TRANSFORMERS", "transformers")], [("COMPRESSED", "transformers")], [("BITSANDBYTES", "transformers")]
VLLM, MLX = [("VLLM", "vllm")], [("MLX", "mlx")]
FORMATS = [
    ("gptq", True, VLLM + HF),
    ("gptq-int8", True, VLLM + HF),
    ("awq", True, VLLM + HF),
    ("w4a16", True, VLLM + CT),
    ("w8a16", False, VLLM + CT),
    ("fp8", False, CT),
    ("fp8-static", True, CT),
    ("fp8-block", False, CT),
    ("int8", True, VLLM + CT),
    ("nvfp4a16", False, CT),
    ("nvfp4", True, CT),
    ("mxfp4", False, CT),
    ("nf4", False, BNB),
    ("nf4-dq", False, BNB),
    ("fp4", False, BNB),
    ("bnb-int8", False, BNB),
    *((name, False, MLX) for name in "mlx-3bit mlx-4bit mlx-6bit mlx-8bit mlx-mxfp4 mlx-nvfp4".split()),
]
# These decode to bfloat16 and nothing else.
BFLOAT16 = {"nvfp4a16", "nvfp4", "mxfp4"}


def run(log, *command):
    """Standard output, and CPU seconds; everything else goes to `log`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with open(log, "a") as errors:
        done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=errors, text=True)
        errors.write(done.stdout)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return (done.stdout if done.returncode == 0 else None), seconds


def main():
    quantize, source, calib, text, work = [Path(p).resolve() for p in sys.argv[1:6]]
    chunks, wanted = (sys.argv[6] if len(sys.argv) > 6 else "8"), sys.argv[7:]
    here = Path(__file__).resolve().parent
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1"}
    print("| format | engine | its perplexity | ours | difference | CPU s to write |\n|---|---|---|---|---|---|")
    for name, calibrated, engines in FORMATS:
        if wanted and name not in wanted:
            continue
        folder, log = work / name, work / f"{name}.log"
        facts = work / f"{name}.json"
        known = json.loads(facts.read_text()) if facts.exists() else {}
        if not folder.exists():
            data = ["--calibration", calib, "--calibration-tokens", os.environ.get("TOKENS", "32768")] if calibrated else ["--rounding", "nearest"]
            _, known["write"] = run(log, quantize, "--to", name, source, "-o", folder, *data)
        if "ours" not in known:
            out, _ = run(log, quantize, "eval", folder, "--text", text, "--chunks", chunks, "--format", "json")
            known["ours"] = json.loads(out)["base"]["ppl"]["value"] if out else None
        for variable, engine in engines:
            python = os.environ.get(variable)
            if python and known.get(engine) is None:
                dtype = "bfloat16" if name in BFLOAT16 else "float32"
                out, _ = run(log, python, here / "engine_perplexity.py", engine, folder, text, chunks, dtype)
                known[engine] = json.loads(out.splitlines()[-1])["perplexity"] if out else None
            facts.write_text(json.dumps(known))
            theirs, ours = known.get(engine), known["ours"]
            label = engine + (" (bfloat16)" if name in BFLOAT16 else "")
            if python and ours:
                cells = [f"{theirs:.3f}", f"{ours:.3f}", f"{100 * (theirs / ours - 1):+.3f} %"] if theirs else ["refused", f"{ours:.3f}", ""]
                print(f"| {name} | {label} | {' | '.join(cells)} | {known['write']:.1f} |", flush=True)


main()
