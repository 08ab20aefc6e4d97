"""Converts checkpoints to F16 GGUF files, and those that see images to projector files, and loads them in unmodified llama.cpp (needs xllamacpp).

usage: load_families.py BIN CHECKPOINTS [NAME ...]      CHECKPOINTS: folders, each with an expected_gguf.json (which pre-tokenizer to name)
       load_families.py --load FILE [PROJECTOR]         one load, in this process: llama.cpp ends it where it refuses a file
"""
import json, os, subprocess, sys, tempfile


def load(model, projector=None):
    import xllamacpp as x
    p = x.CommonParams()
    p.model.path, p.n_ctx, p.n_predict, p.warmup, p.n_gpu_layers = model, 64, 2, False, 0
    if projector: p.mmproj.path, p.mmproj_use_gpu = projector, False
    server = x.Server(p)
    prompt = "ab" if projector else [5, 6, 7, 8]           # with images, prompts are texts
    answer = server.handle_completions({"prompt": prompt, "max_tokens": 2, "temperature": 0})
    answer = answer if isinstance(answer, dict) else json.loads(answer)
    print("ran" if "choices" in answer else f"loaded: {str(answer)[:150]}", flush=True)
    os._exit(0)


def attempt(*files):
    try: run = subprocess.run([sys.executable, __file__, "--load", *files], capture_output=True, text=True, errors="replace", timeout=120)
    except subprocess.TimeoutExpired: return "no answer"
    if run.returncode == 0: return run.stdout.strip().splitlines()[-1] if run.stdout.strip() else "loaded"
    wanted = ("error: ", " E ", "error ", "missing", "wrong", "unknown", "unsupported", "failed", "GGML_ASSERT", "invalid", "not found", "expected")
    lines = [l.strip() for l in (run.stderr + run.stdout).splitlines() if any(w in l for w in wanted) and "build_info" not in l]
    return f"refused ({run.returncode}): {lines[0][:230] if lines else ''}"


def main():
    binary, root, names = sys.argv[1], sys.argv[2], sys.argv[3:]
    with tempfile.TemporaryDirectory() as out:
        for name in names or sorted(os.listdir(root)):
            folder = os.path.join(root, name)
            if not os.path.isfile(os.path.join(folder, "expected_gguf.json")): continue
            with open(os.path.join(folder, "expected_gguf.json")) as f: metadata = json.load(f)["metadata"]
            pre = metadata.get("tokenizer.ggml.pre", {}).get("value", "default")
            made = lambda *args: subprocess.run([binary, "--force", "--quiet", *args, folder], capture_output=True, text=True)
            model, projector = os.path.join(out, "model.gguf"), os.path.join(out, "mmproj.gguf")
            run = made("--to", "f16", "-o", model, *([] if pre == "default" else ["--pretokenizer", pre]))
            print(f"{name}:", attempt(model) if run.returncode == 0 else f"not converted: {run.stderr.strip()[:150]}", end="", flush=True)
            if os.path.isfile(os.path.join(folder, "preprocessor_config.json")):
                run = made("--mmproj", "f16", "-o", projector)
                print("; with projector:", attempt(model, projector) if run.returncode == 0 else f"not converted: {run.stderr.strip()[:150]}", end="")
            print(flush=True)


load(*sys.argv[2:]) if sys.argv[1] == "--load" else main()
