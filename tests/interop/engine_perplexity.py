"""Perplexity of a checkpoint folder in the engine that it is made for, on the windows that `quantize eval` scores: the
text is cut into windows of 512 tokens, and the last 255 targets of each count. Prints one line of JSON.

Usage: engine_perplexity.py transformers|vllm|mlx FOLDER TEXT CHUNKS [DTYPE]

Run it with the Python that has the engine, PYTHONSAFEPATH=1 and HF_HUB_OFFLINE=1. DTYPE: what transformers computes in
(float32; bfloat16 where a format decodes to nothing else). MLX computes in float32.
"""

import json
import math
import os
import sys

CONTEXT = 512
FIRST = CONTEXT // 2


def windows(folder, text, chunks):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    ids = tokenizer.encode(open(text, encoding="utf-8").read(), add_special_tokens=False).ids
    cut = [ids[i : i + CONTEXT] for i in range(0, len(ids) - CONTEXT + 1, CONTEXT)]
    assert len(cut) >= chunks, f"the text has {len(cut)} windows"
    return cut[:chunks]


def with_transformers(folder, texts, dtype):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(int(os.environ.get("THREADS", "2")))
    dtype = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu").eval()
    with torch.inference_mode():
        for ids in texts:
            logits = model(torch.tensor([ids]), use_cache=False).logits[0, FIRST : CONTEXT - 1].double()
            targets = torch.tensor(ids[FIRST + 1 :])[:, None]
            yield from (-torch.log_softmax(logits, -1).gather(1, targets)[:, 0]).tolist()


def with_vllm(folder, texts, _):
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    llm = LLM(model=folder, max_model_len=2 * CONTEXT, enforce_eager=True, max_num_seqs=4)
    wanted = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0)
    for ids in texts:
        (output,) = llm.generate([{"prompt_token_ids": ids}], wanted, use_tqdm=False)
        for token, known in list(zip(ids, output.prompt_logprobs))[FIRST + 1 :]:
            yield -known[token].logprob


def with_mlx(folder, texts, _):
    import mlx.core as mx
    from mlx_lm.utils import load

    model, _ = load(folder)
    model.set_dtype(mx.float32)
    for ids in texts:
        logits = model(mx.array(ids)[None])[0, FIRST : CONTEXT - 1].astype(mx.float32)
        logits = logits - mx.logsumexp(logits, -1, keepdims=True)
        targets = mx.array(ids[FIRST + 1 :])[:, None]
        yield from (-mx.take_along_axis(logits, targets, 1)[:, 0]).tolist()


def main():
    engine, folder, text, chunks = sys.argv[1:5]
    dtype = sys.argv[5] if len(sys.argv) > 5 else "float32"
    score = {"transformers": with_transformers, "vllm": with_vllm, "mlx": with_mlx}[engine]
    losses = list(score(folder, windows(folder, text, int(chunks)), dtype))
    print(json.dumps({"engine": engine, "dtype": dtype, "tokens": len(losses), "perplexity": math.exp(math.fsum(losses) / len(losses))}))


if __name__ == "__main__":
    main()
