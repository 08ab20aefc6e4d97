"""What `quantize verify --for ENGINE` says of checkpoint folders beside what the engine does with them: every checkpoint
named in every format of that engine, and folders broken in one place each (folder_damage.py). A folder loads when the
engine takes it and its logits are those that transformers computes of the dequantized weights. Every result is kept in
WORK/ENGINE.jsonl; a run that comes back makes what is missing. Prints Markdown; exit code 1 for a false 'loads', or more
than 2 % of false refusals.

Usage: folder_verdicts.py QUANTIZE WORK ENGINE[,ENGINE] CHECKPOINT...
       folder_verdicts.py QUANTIZE WORK ENGINE --verdicts      (asks `verify` again; what the engine does is kept)
       folder_verdicts.py QUANTIZE WORK ENGINE,ENGINE --seen   (prints src/convert/folder/engines/seen.tsv)

TRANSFORMERS, MLX, VLLM: the Python interpreters (transformers with compressed-tensors and bitsandbytes). FORMATS: those to
try, instead of all. CHECKPOINT: a folder with expected.json. DAMAGED: how many sound folders get every damage, 3 unless named.
LIMIT: seconds that the engine has for a folder, 120 unless named.
"""

import collections
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy
from folder_damage import DAMAGES

INTERPRETER = {"transformers": "TRANSFORMERS", "mlx": "MLX", "vllm": "VLLM"}
FORMATS = {
    "transformers": "safetensors nf4 nf4-dq fp4 bnb-int8 w4a16-32g w4a16-32g-asym w8a16 int8 fp8 nvfp4a16 mxfp4".split(),
    "mlx": "mlx-3bit-32g mlx-4bit-32g mlx-8bit-32g mlx-mxfp4 mlx-mxfp8 mlx-nvfp4 awq-32g gptq-32g safetensors nf4 int8".split(),
    "vllm": "safetensors awq-32g gptq-32g w4a16-32g nf4 int8".split(),
}
BNB = {"nf4", "nf4-dq", "fp4", "bnb-int8"}
BFLOAT16 = {"nvfp4a16", "mxfp4"}
# How far logits may be off, in their standard deviations, where the engine rounds activations, where it computes in 16
# bits, and elsewhere.
ROUNDED = {"safetensors": 1e-4, "bnb-int8": 0.4, "nvfp4a16": 0.15, "mxfp4": 0.15, "nf4": 0.1, "nf4-dq": 0.1, "fp4": 0.1}
ROUNDED |= {"int8": 0.03, "fp8": 0.03, "w4a16": 0.03, "w8a16": 0.03}
EXACT = 0.004
VLLM = 0.1
# Whose graph the engine computes otherwise than transformers whatever the folder: its own logits of the dequantized
# weights are the measure.
OWN_GRAPH = {("mlx", "gemma2"): "no windows", ("mlx", "falcon-h1"): "0.35 off in 16 bits too"}


class Engine:
    """A folder_logits.py that answers."""

    def __init__(self, name, log):
        here = Path(__file__).resolve().parent
        env = os.environ | {"PYTHONSAFEPATH": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        command = [os.environ[INTERPRETER[name]], here / "folder_logits.py", name, os.environ.get("LIMIT", "120")]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "a"), text=True, env=env)

    def logits(self, folder, ids, dtype="float32", tokenizer=True):
        """An array, or what the engine said."""
        with tempfile.NamedTemporaryFile(suffix=".npy") as out:
            job = {"folder": str(folder), "ids": ids, "dtype": dtype, "out": out.name, "tokenizer": tokenizer}
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
            said = json.loads(self.process.stdout.readline())
            return numpy.load(out.name) if said["ok"] else said["error"]


def deviation(a, b, experts=False):
    """Of what the softmax sees, in standard deviations. Where experts are nearly tied, another one is chosen by the last
    bits of a token: one in sixteen may be off."""
    if a.shape != b.shape:
        return f"logits of shape {a.shape}, not {b.shape}"
    a, b = (x.astype(numpy.float64) - (x.mean(-1, keepdims=True) if x.shape[-1] > 8 else 0) for x in (a, b))
    tokens = numpy.sort(((a - b) ** 2).mean(-1).ravel())
    found = float(numpy.sqrt(tokens[: len(tokens) - len(tokens) // 16 if experts else None].mean()) / b.std())
    return found if numpy.isfinite(found) else 1e9


def verdict(quantize, folder, engine):
    run = subprocess.run([quantize, "verify", folder, "--for", engine, "--format", "json", "--quiet"], capture_output=True, text=True)
    try:
        said = json.loads(run.stdout)["engines"][0]
        return said["loads"], "; ".join(o["what"] for o in said["objections"])[:400]
    except (json.JSONDecodeError, KeyError):
        # Unsound, or packed in a way that is not known: the engine was not asked.
        return "unsound", run.stderr.strip()[-400:]


def model_class(folder):
    """The class in config.json, and whether there are experts."""
    named = (json.loads((folder / "config.json").read_text()).get("architectures") or [""])[0]
    with open(folder / "model.safetensors", "rb") as f:
        header = f.read(struct.unpack("<Q", f.read(8))[0])
    return named + (" experts" if b"expert" in header or b"switch_mlp" in header else "")


class Table:
    def __init__(self, quantize, work, engine):
        self.quantize, self.work, self.name = quantize, work, engine
        self.path = work / f"{engine}.jsonl"
        self.rows = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                row = json.loads(line)
                self.rows[row["what"]] = row

    def keep(self, row):
        self.rows[row["what"]] = row
        with open(self.path, "a") as f:
            f.write(json.dumps(row) + "\n")

    def reference(self, torch, engine, folder, ids, family):
        """Logits of the dequantized weights."""
        own = (self.name, family) in OWN_GRAPH
        kept = folder.parent / f"{folder.name}{'.own' if own else ''}.npy"
        if not kept.exists():
            with tempfile.TemporaryDirectory() as plain:
                plain = Path(plain) / "plain"
                made = subprocess.run([self.quantize, "--to", "safetensors", folder, "-o", plain, "-q"], capture_output=True, text=True)
                if made.returncode:
                    return made.stderr.strip()[-300:]
                if own:
                    config = json.loads((folder / "config.json").read_text())
                    config.pop("quantization", None), config.pop("quantization_config", None)
                    (plain / "config.json").write_text(json.dumps(config))
                logits = (engine if own else torch).logits(plain, ids, tokenizer=False)
            if isinstance(logits, str):
                return logits
            numpy.save(kept, logits)
        return numpy.load(kept)

    def error(self, engine, folder, ids, reference, form, experts):
        """How far the engine's logits are off, or what it said."""
        dtype = "auto" if self.name == "vllm" else "bfloat16" if form in BFLOAT16 and self.name == "transformers" else "float32"
        logits = engine.logits(folder, ids, dtype)
        if isinstance(logits, str) and form in BNB and self.name == "transformers":
            # Modules of packed layers give the type that they were made of, which not all neighbours take.
            logits = engine.logits(folder, ids, "auto")
        config = folder / "config.json"
        if not isinstance(logits, str) and self.name == "transformers" and '"input_activations": {' in config.read_text():
            # It loads and runs; what its weights are is seen without the rounding of activations.
            text = config.read_text()
            changed = json.loads(text)
            for group in changed["quantization_config"]["config_groups"].values():
                group["input_activations"] = None
            config.write_text(json.dumps(changed))
            logits = engine.logits(folder, ids, dtype)
            config.write_text(text)
        return logits if isinstance(logits, str) else deviation(logits, reference, experts)

    def right(self, error, form):
        # MLX multiplies by its floats in 16 bits where matrices are wide.
        if self.name == "mlx" and form in ("mlx-mxfp4", "mlx-mxfp8", "mlx-nvfp4"):
            return not isinstance(error, str) and error <= 0.03
        limit = ROUNDED.get(form, ROUNDED.get(form.split("-")[0], EXACT)) if self.name != "mlx" else 0.003 if form == "safetensors" else EXACT
        return not isinstance(error, str) and error <= (max(limit, VLLM) if self.name == "vllm" else limit)

    def judge(self, what, engine, folder, ids, reference, form, family):
        named = model_class(self.work / "folders" / f"{family}-{form}")
        error = self.error(engine, folder, ids, reference, form, named.endswith(" experts"))
        truth = self.right(error, form)
        says, why = verdict(self.quantize, folder, self.name)
        row = {"what": what, "family": family, "class": named, "format": form, "damage": what.partition(": ")[2]}
        self.keep({**row, "truth": truth, "engine": error, "says": says, "why": why})

    def run(self, checkpoints):
        torch = Engine("transformers", self.work / "transformers.log")
        engine = torch if self.name == "transformers" else Engine(self.name, self.work / f"{self.name}.log")
        damaged, wanted = collections.Counter(), int(os.environ.get("DAMAGED", "3"))
        for checkpoint in checkpoints:
            expected = json.loads((checkpoint / "expected.json").read_text())
            ids = expected["input_ids"]
            for form in os.environ.get("FORMATS", " ".join(FORMATS[self.name])).split():
                what = f"{checkpoint.name} {form}"
                folder = self.work / "folders" / f"{checkpoint.name}-{form}"
                left = lambda: [d for d in DAMAGES if f"{what}: {d.__name__}" not in self.rows]
                breaks = damaged[form] < wanted and self.rows.get(what, {}).get("truth") is not False and not self.rows.get(what, {}).get("skipped")
                if what in self.rows and not (breaks and left()):
                    damaged[form] += breaks
                    continue
                if not folder.exists():
                    folder.parent.mkdir(parents=True, exist_ok=True)
                    rounding = [] if form == "safetensors" else ["--rounding", "nearest"]
                    made = subprocess.run([self.quantize, "--to", form, *rounding, "-q", checkpoint, "-o", folder], capture_output=True, text=True)
                    if made.returncode:
                        shutil.rmtree(folder, ignore_errors=True)
                        self.keep({"what": what, "skipped": made.stderr.strip()[-300:]})
                        continue
                reference = self.reference(torch, engine, folder, ids, checkpoint.name)
                if isinstance(reference, str) and not isinstance(engine.logits(folder, ids), str):
                    self.keep({"what": what, "skipped": f"no reference: {reference}"})
                    continue
                if what not in self.rows:
                    self.judge(what, engine, folder, ids, reference, form, checkpoint.name)
                if damaged[form] < wanted and self.rows[what]["truth"]:
                    damaged[form] += 1
                    for change in left():
                        with tempfile.TemporaryDirectory() as scratch:
                            broken = Path(scratch) / folder.name
                            shutil.copytree(folder, broken)
                            try:
                                change(broken)
                            except (KeyError, IndexError, StopIteration, FileNotFoundError):
                                continue
                            self.judge(f"{what}: {change.__name__}", engine, broken, ids, reference, form, checkpoint.name)

    def again(self):
        """Asks `verify` again about everything that was judged."""
        for row in list(self.rows.values()):
            if "skipped" in row:
                continue
            folder = self.work / "folders" / f"{row['family']}-{row['format']}"
            row["class"], row["truth"] = model_class(folder), self.right(row["engine"], row["format"])
            with tempfile.TemporaryDirectory() as scratch:
                if row["damage"]:
                    broken = Path(scratch) / folder.name
                    shutil.copytree(folder, broken)
                    next(d for d in DAMAGES if d.__name__ == row["damage"])(broken)
                    folder = broken
                row["says"], row["why"] = verdict(self.quantize, folder, self.name)
        self.path.write_text("".join(json.dumps(row) + "\n" for row in self.rows.values()))

    def summary(self):
        """Markdown; how many false 'loads' there are, and the share of false refusals."""
        counts = collections.defaultdict(collections.Counter)
        rows = [row for row in self.rows.values() if "skipped" not in row]
        for row in rows:
            counts[row["damage"] or row["format"]][row["truth"], row["says"]] += 1
        columns = ["loads, said to", "does not, refused", "does not, unsound", "not known, loads", "not known, does not", "false 'loads'", "false refusals", "unsound, loads"]
        cells = [(True, True), (False, False), (False, "unsound"), (True, None), (False, None), (False, True), (True, False), (True, "unsound")]
        print(f"\n## {self.name}\n\n| format, or damage | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
        total = collections.Counter()
        for name, c in counts.items():
            print(f"| {name} | {' | '.join(str(c[cell] or '') for cell in cells)} |")
            total += c
        print(f"| all {len(rows)} | {' | '.join(str(total[cell]) for cell in cells)} |")
        wrong = {cell: [row for row in rows if (row["truth"], row["says"]) == cell] for cell in cells[5:]}
        share = 100 * len(wrong[True, False]) / max(sum(row["truth"] for row in rows), 1)
        print(f"\nfalse refusals: {share:.1f} % of what loads")
        for cell, title in zip(cells[5:], columns[5:]):
            for row in wrong[cell] if title != "unsound, loads" else []:
                print(f"{title}: {row['what']} | {row['engine'] if cell[1] is True else row['why']}")
        return len(wrong[False, True]), share


KINDS = {"safetensors": "plain", "bnb-int8": "bitsandbytes-8bit", "int8": "int-quantized", "awq": "awq", "gptq": "gptq", "mlx": "mlx", "fp8": "float-quantized"}
KINDS |= {name: "bitsandbytes-4bit" for name in ("nf4", "fp4")} | {name: "pack-quantized" for name in ("w4a16", "w8a16")}
KINDS |= {name: "nvfp4-pack-quantized" for name in ("nvfp4", "nvfp4a16")} | {"mxfp4": "mxfp4-pack-quantized"}


def seen(tables):
    """src/convert/folder/engines/seen.tsv: what every kind of folder of every class of model did that no other rule judges."""
    for table in tables:
        found = collections.defaultdict(set)
        for row in table.rows.values():
            ruled = row.get("says") not in (True, None) or any(text in row.get("why", "") for text in ("on a CPU", "no windows"))
            if "skipped" not in row and not row["damage"] and not ruled:
                kind = KINDS[row["format"] if row["format"] in KINDS else row["format"].split("-")[0]]
                found[kind, row["class"]].add(row["truth"])
        for (kind, name), truths in sorted(found.items()):
            print(table.name, kind, name, {True: "+", False: "-"}[all(truths)] if len(truths) == 1 else "?", sep="\t")


def main():
    quantize, work, engines, named = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve(), sys.argv[3].split(","), sys.argv[4:]
    work.mkdir(parents=True, exist_ok=True)
    failed = False
    if named == ["--seen"]:
        return seen([Table(quantize, work, name) for name in engines])
    for name in engines:
        table = Table(quantize, work, name)
        if named == ["--verdicts"]:
            table.again()
        else:
            table.run([Path(p).resolve() for p in named])
        wrong, share = table.summary()
        failed |= wrong > 0 or share > 2
    sys.exit(failed)


if __name__ == "__main__":
    main()
