"""Questions with several answers, answered by llama-perplexity and by `quantize eval --task`, one by one.

Makes HellaSwag, WinoGrande and multiple-choice files from a text (a sentence goes on as it does, or as others do), has both
programs answer them on the same GGUF file, and prints how many answers are the same. Take an F32 file: llama.cpp rounds
activations for others.

Usage: questions.py QUANTIZE LLAMA_PERPLEXITY MODEL.gguf TEXT WORK [N]
"""

import json
import random
import re
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np

quantize, peer, model, text, work = sys.argv[1:6]
n = int(sys.argv[6]) if len(sys.argv) > 6 else 200
work = Path(work)
work.mkdir(parents=True, exist_ok=True)
random.seed(7)

sentences = re.sub(r"\s+", " ", Path(text).read_text()).split(". ")
sentences = [s for s in sentences if 12 <= len(s.split()) <= 60 and "_" not in s and '"' not in s and "," not in s]
random.shuffle(sentences)
halves = [(" ".join(w[: len(w) // 2]), " ".join(w[len(w) // 2 :])) for w in map(str.split, sentences)]


def choices(i, count):
    others = random.sample([k for k in range(len(halves)) if k != i], count - 1)
    endings = [halves[k][1] for k in others]
    right = random.randrange(count)
    endings.insert(right, halves[i][1])
    return endings, right


swag, many, table = [], [], []
for i in range(min(n, len(halves))):
    endings, right = choices(i, 4)
    swag.append((halves[i][0], right, endings))
    endings, right = choices(i, random.randint(2, 6))
    many.append((halves[i][0], right, endings))
    words = sentences[i].split()
    at = random.randrange(2, len(words) - 5)
    other = random.choice(random.choice(sentences).split())
    if other != words[at]:
        answer = random.randint(1, 2)
        one, two = (words[at], other) if answer == 1 else (other, words[at])
        gap = " ".join(words[:at] + ["_"] + words[at + 1 :]) + "."
        table.append((gap, one, two, answer))

(work / "swag.txt").write_text("".join("\n".join([c, str(r), *e]) + "\n" for c, r, e in swag))
(work / "wino.csv").write_text("".join(f"{i},{g},{a},{b},{r}\n" for i, (g, a, b, r) in enumerate(table)))


def string(s):
    return struct.pack("<I", len(s.encode())) + s.encode()


tasks = []
for question, right, answers in many:
    labels = struct.pack(f"<{len(answers)}i", *(int(k == right) for k in range(len(answers))))
    tasks.append(string(question) + struct.pack("<I", len(answers)) + b"".join(map(string, answers)) + labels + struct.pack("<I", 0))
places, at = [], 4 + 4 * len(tasks)
for task in tasks:
    places.append(at)
    at += len(task)
(work / "many.bin").write_bytes(struct.pack("<I", len(tasks)) + struct.pack(f"<{len(tasks)}I", *places) + b"".join(tasks))
(work / "many.jsonl").write_text(
    "".join(json.dumps({"question": q, "choices": a, "answer": r}) + "\n" for q, r, a in many)
)


def theirs(*flags):
    run = subprocess.run([peer, "-m", model, "-t", "2", *flags], capture_output=True, text=True)
    return run.stdout + run.stderr


def ours(file):
    run = subprocess.run([quantize, "eval", model, "--task", file, "--format", "json", "-t", "2"], capture_output=True, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return json.loads(run.stdout)["tasks"][0]["base"]


def steps(output, tabs):
    """Which answers were right, from the running mean that is printed for each."""
    rows = re.findall(r"^(\d+)\t(\d+\.\d+)" + tabs, output, re.M)
    sums = [0] + [round(int(i) * float(mean) / 100) for i, mean in rows]
    return [b - a for a, b in zip(sums, sums[1:])]


# llama-perplexity asks HellaSwag's questions in a drawn order: std::mt19937(1) with libstdc++'s uniform_int_distribution.
generator, left, order = np.random.RandomState(1), list(range(len(swag))), []
while left:
    product = int(generator.randint(0, 2**32, dtype=np.uint32)) * len(left)
    if product % 2**32 < len(left):
        threshold = (2**32 - len(left)) % len(left)
        while product % 2**32 < threshold:
            product = int(generator.randint(0, 2**32, dtype=np.uint32)) * len(left)
    order.append(left.pop(product >> 32))

print("| questions | asked | right, ours | right, llama-perplexity | same, question by question |")
print("|---|---|---|---|---|")


def line(name, mine, peers):
    same = sum(a == b for a, b in zip(mine, peers))
    print(f"| {name} | {len(mine)} | {sum(mine)} | {sum(peers)} | {same} of {len(peers)} |")


found = ours(str(work / "swag.txt"))
mine = [int(a == q[1]) for a, q in zip(found["answers"], swag)]
peers = steps(theirs("-f", str(work / "swag.txt"), "--hellaswag", "--hellaswag-tasks", str(len(swag)), "-np", "4", "-c", "2048"), "%")
line("HellaSwag", [mine[i] for i in order], peers)

found = ours(str(work / "wino.csv"))
mine = [a + 1 for a in found["answers"]]
output = theirs("-f", str(work / "wino.csv"), "--winogrande", "-np", "4", "-c", "2048")
rows = re.findall(r"^\d+\t[\d.]+\t\s*(-?[\d.]+|-?nan)\s+(-?[\d.]+|-?nan)\s+(\d)\s+\d", output, re.M)
peers = [int(row[2]) for row in rows]
same = sum(a == b for a, b in zip(mine, peers))
right = [row[3] for row in table]
print(f"| WinoGrande | {len(mine)} | {sum(a == r for a, r in zip(mine, right))} | {sum(a == r for a, r in zip(peers, right))} | {same} of {len(peers)} |")

for file in ("many.bin", "many.jsonl"):
    found = ours(str(work / file))
    mine = [int(a == q[1]) for a, q in zip(found["answers"], many)]
    if file == "many.bin":
        peers = steps(theirs("-bf", str(work / "many.bin"), "--multiple-choice", "-np", "8", "-c", "2048"), "")
    line(f"multiple choice, {file}", mine, peers)
