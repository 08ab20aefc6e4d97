"""What an engine computes of checkpoint folders. Reads a line of JSON per folder from standard input, `{"folder": ...,
"ids": [[...]], "dtype": "float32", "out": "x.npy"}`, and answers each with a line: `{"ok": true}` and the logits (or last
hidden states) in `out`, or `{"ok": false, "error": ...}`. Every folder is loaded by a process of its own, forked off when
the engine's libraries are there, and given LIMIT seconds.

Usage: folder_logits.py transformers|mlx|vllm [LIMIT]

Run it with the Python that has the engine, PYTHONSAFEPATH=1 and HF_HUB_OFFLINE=1.
"""

import json
import os
import signal
import sys


def speaks(tokenizer):
    """transformers makes an empty tokenizer where there are no files."""
    if not tokenizer.encode("The quick brown fox", add_special_tokens=False):
        raise ValueError("the tokenizer knows no text")


def with_transformers(job):
    import numpy
    import torch
    import transformers

    try:
        import bitsandbytes.nn.modules as bnb

        # Its kernel for processors with AVX512-BF16 wants rows by the dozen, which small models have not.
        bnb.has_avx512bf16 = lambda: False
    except ImportError:
        pass
    torch.set_num_threads(1)
    if job.get("tokenizer", True):
        speaks(transformers.AutoTokenizer.from_pretrained(job["folder"]))
    config = transformers.AutoConfig.from_pretrained(job["folder"])
    kind = getattr(transformers, (config.architectures or [""])[0], transformers.AutoModelForCausalLM)
    dtype = job["dtype"] if job["dtype"] == "auto" else getattr(torch, job["dtype"])
    model, seen = kind.from_pretrained(job["folder"], dtype=dtype, device_map="cpu", attn_implementation="eager", output_loading_info=True)
    if lost := [name for name in seen["missing_keys"] if name.endswith("weight_scale")]:
        # An encoder that text does not reach, taken for packed.
        raise ValueError(f"no scales: {lost[0]} and {len(lost) - 1} more")
    model.eval()
    rows = []
    with torch.inference_mode():
        for ids in job["ids"]:
            ids = torch.tensor([ids])
            more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
            out = model(input_ids=ids, **more)
            out = out.logits if getattr(out, "logits", None) is not None else out.last_hidden_state
            rows.append(out[0].float().numpy())
    return numpy.stack(rows)


def with_mlx(job):
    import mlx.core as mx
    import numpy
    from mlx_lm.utils import load

    model, tokenizer = load(job["folder"])
    if job.get("tokenizer", True):
        speaks(tokenizer)
    model.set_dtype(mx.float32)
    return numpy.stack([numpy.array(model(mx.array(ids)[None])[0].astype(mx.float32)) for ids in job["ids"]])


def with_vllm(job):
    import numpy
    from vllm import LLM, SamplingParams

    llm = LLM(model=job["folder"], max_model_len=64, enforce_eager=True, max_num_seqs=2, dtype=job["dtype"], max_logprobs=-1, skip_tokenizer_init=True)
    wanted = SamplingParams(temperature=0, max_tokens=1, logprobs=-1, prompt_logprobs=-1, detokenize=False)
    rows = []
    for ids in job["ids"]:
        (output,) = llm.generate([{"prompt_token_ids": ids}], wanted, use_tqdm=False)
        known = [*output.prompt_logprobs[1:], *output.outputs[0].logprobs]
        rows.append([[row[i].logprob for i in range(len(row))] for row in known])
    return numpy.array(rows, dtype=numpy.float32)


def answer(job, engine, limit):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(limit)
        try:
            import numpy

            numpy.save(job["out"], engine(job))
            said = {"ok": True}
        except BaseException as e:
            said = {"ok": False, "error": f"{type(e).__name__}: {e}"[:600]}
        os.write(write, json.dumps(said).encode())
        os._exit(0)
    os.close(write)
    said = b""
    while part := os.read(read, 65536):
        said += part
    os.close(read)
    status = os.waitpid(pid, 0)[1]
    return json.loads(said) if said else {"ok": False, "error": f"died with signal {status & 127}"}


def main():
    engine = {"transformers": with_transformers, "mlx": with_mlx, "vllm": with_vllm}[sys.argv[1]]
    limit = int(sys.argv[2]) if len(sys.argv) > 2 else 120
    talk, sys.stdout = sys.stdout, sys.stderr
    os.dup2(2, 1) if (keep := os.dup(1)) else None
    talk = os.fdopen(keep, "w")
    if engine is with_transformers:
        import transformers  # noqa: F401
        import transformers.modeling_utils  # noqa: F401
        for name in ("compressed_tensors", "bitsandbytes", "accelerate"):
            try:
                __import__(name)
            except ImportError:
                pass
    elif engine is with_vllm:
        import vllm  # noqa: F401
    else:
        import transformers  # noqa: F401
    for line in sys.stdin:
        talk.write(json.dumps(answer(json.loads(line), engine, limit)) + "\n")
        talk.flush()


if __name__ == "__main__":
    main()
