"""Damages of a checkpoint folder, one place each: functions of the folder. Which of them stop an engine is for
folder_verdicts.py to find out; a damage that does not apply raises KeyError, IndexError, StopIteration or FileNotFoundError."""

import json
import struct


def read(folder):
    """Of a folder with one file of weights: name → [type, shape, bytes], in order."""
    data = (folder / "model.safetensors").read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + n])
    metadata = header.pop("__metadata__", None)
    tensors = {name: [t["dtype"], t["shape"], data[8 + n + t["data_offsets"][0] : 8 + n + t["data_offsets"][1]]] for name, t in header.items()}
    return metadata, tensors


def write(path, metadata, tensors):
    header, at = ({"__metadata__": metadata} if metadata else {}), 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def tensors(change):
    def damage(folder):
        metadata, found = read(folder)
        changed = change(found)
        write(folder / "model.safetensors", metadata, found if changed is None else changed)

    damage.__name__ = change.__name__
    return damage


def config(change):
    def damage(folder):
        found = json.loads((folder / "config.json").read_text())
        change(found)
        (folder / "config.json").write_text(json.dumps(found, indent=2))

    damage.__name__ = change.__name__
    return damage


def first(found, *ends):
    return next(name for name in found if name.endswith(ends) and ".layers." in name)


PROJECTIONS = tuple(f"{p}.{s}" for p in ("q_proj", "o_proj", "down_proj") for s in ("weight", "weight_packed", "qweight"))
SCALES = ("weight.absmax", "SCB", "weight_scale", ".scales")


@tensors
def no_projection(t):
    t.pop(first(t, *PROJECTIONS))


@tensors
def no_norm(t):
    t.pop(first(t, "norm.weight"))


@tensors
def no_last_norm(t):
    t.pop(next(n for n in t if n.endswith("norm.weight") and ".layers." not in n))


@tensors
def no_embedding(t):
    embedding = next(n for n in t if "embed_tokens" in n)
    for name in [n for n in t if n.startswith(embedding.rsplit(".", 1)[0] + ".")]:
        t.pop(name)


@tensors
def no_head(t):
    for name in [n for n in t if n.startswith("lm_head.")] or [][0]:
        t.pop(name)


@tensors
def no_scales(t):
    t.pop(first(t, *SCALES))


@tensors
def no_biases_of_groups(t):
    t.pop(first(t, ".biases"))


@tensors
def no_zero_points(t):
    t.pop(first(t, "qzeros", "zero_point"))


@tensors
def no_state(t):
    t.pop(first(t, "bitsandbytes__nf4", "bitsandbytes__fp4"))


@tensors
def no_layer(t):
    """The last one."""
    last = max(int(n.split(".layers.")[1].split(".")[0]) for n in t if ".layers." in n)
    for name in [n for n in t if f".layers.{last}." in n]:
        t.pop(name)


@tensors
def one_tensor(t):
    return dict([next(iter(t.items()))])


@tensors
def renamed_projection(t):
    name = first(t, *PROJECTIONS)
    return {n.replace(name, name.replace("_proj.", "_projection.")): x for n, x in t.items()}


@tensors
def renamed_norm(t):
    name = first(t, "norm.weight")
    return {n.replace(name, name.replace("norm.weight", "norm.gamma_")): x for n, x in t.items()}


@tensors
def other_prefix(t):
    return {("model." + n if n.startswith("model.") else n): x for n, x in t.items()}


@tensors
def more_tensors(t):
    t["model.layers.0.self_attn.something.weight"] = ["F16", [32], bytes(64)]


@tensors
def layer_too_many(t):
    last = max(int(n.split(".layers.")[1].split(".")[0]) for n in t if ".layers." in n)
    for name in [n for n in t if f".layers.{last}." in n]:
        t[name.replace(f".layers.{last}.", f".layers.{last + 1}.")] = t[name]


@tensors
def norm_too_short(t):
    x = t[first(t, "norm.weight")]
    size = len(x[2]) // x[1][0]
    x[1] = [x[1][0] - 2]
    x[2] = x[2][: x[1][0] * size]


@tensors
def row_less(t):
    x = t[first(t, *PROJECTIONS)]
    row = len(x[2]) // x[1][0]
    x[1] = [x[1][0] - 1, *x[1][1:]]
    x[2] = x[2][: x[1][0] * row]


@tensors
def row_less_in_scales(t):
    x = t[first(t, *SCALES)]
    row = len(x[2]) // x[1][0]
    x[1] = [x[1][0] - 1, *x[1][1:]]
    x[2] = x[2][: x[1][0] * row]


@tensors
def row_less_in_embedding(t):
    x = t[next(n for n in t if "embed_tokens.weight" in n)]
    row = len(x[2]) // x[1][0]
    x[1] = [x[1][0] - 8, *x[1][1:]]
    x[2] = x[2][: x[1][0] * row]


@tensors
def plain_weight_among_packed(t):
    """A layer whose codes stand there as 16-bit numbers."""
    name = first(t, *PROJECTIONS)
    t[name][0] = {"U8": "U8", "I32": "F32", "U32": "F32", "I8": "U8", "F8_E4M3": "U8"}[t[name][0]]
    if t[name][0] == "U8" and name.endswith("weight_packed"):
        raise KeyError


@tensors
def empty(t):
    return {}


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def lfs_pointer(folder):
    path = folder / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {path.stat().st_size}\n")


def lfs_pointer_as_tokenizer(folder):
    (folder / "tokenizer.json").write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 9\n")


def cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def no_config(folder):
    (folder / "config.json").unlink()


def cut_config(folder):
    path = folder / "config.json"
    path.write_text(path.read_text()[: path.stat().st_size // 2])


def cut_generation_config(folder):
    (folder / "generation_config.json").write_text('{"eos_token_id": ')


def cut_index(folder):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {')


def stray_shard(folder):
    """A file that another download left behind, with other tensors of the same names."""
    metadata, found = read(folder)
    write(folder / "model-00001-of-00002.safetensors", metadata, {n: [d, s, bytes(len(b))] for n, (d, s, b) in list(found.items())[:3]})


def stray_adapter(folder):
    write(folder / "adapter_model.safetensors", None, {"base_model.model.x.lora_A.weight": ["F32", [1, 32], bytes(128)]})


def stray_rest(folder):
    write(folder / "other.safetensors", None, {"something.else": ["F32", [32], bytes(128)]})


def split(folder, keep):
    metadata, found = read(folder)
    names = list(found)
    half = len(names) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, part in parts.items():
        write(folder / file, metadata, {n: found[n] for n in part})
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": 0}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    keep(folder, index)


def in_two_shards(folder):
    split(folder, lambda *_: None)


def shard_missing(folder):
    split(folder, lambda folder, _: (folder / "model-00002-of-00002.safetensors").unlink())


def shard_cut(folder):
    def cut_second(folder, _):
        path = folder / "model-00002-of-00002.safetensors"
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])

    split(folder, cut_second)


def shards_without_index(folder):
    split(folder, lambda folder, _: (folder / "model.safetensors.index.json").unlink())


def index_of_one_shard(folder):
    def forget(folder, index):
        index["weight_map"] = {n: f for n, f in index["weight_map"].items() if f.startswith("model-00001")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    split(folder, forget)


@config
def no_quantization(c):
    c.pop("quantization_config")
    c.pop("quantization", None)


@config
def no_own_object(c):
    """MLX's, beside the other."""
    c.pop("quantization")


def quant(c):
    return [c[k] for k in ("quantization_config", "quantization") if k in c] or [][0]


@config
def other_group_size(c):
    for q in quant(c):
        if "group_size" in q:
            q["group_size"] *= 2
        else:
            weights = q["config_groups"]["group_0"]["weights"]
            weights["group_size"] = {None: None, 32: 64, 16: 32}[weights["group_size"]]
            if weights["group_size"] is None:
                raise KeyError


@config
def other_bits(c):
    for q in quant(c):
        if "bits" in q:
            q["bits"] = {4: 8, 8: 4, 3: 4}[q["bits"]]
        else:
            weights = q["config_groups"]["group_0"]["weights"]
            weights["num_bits"] = 12 - weights["num_bits"]


@config
def other_mode(c):
    """Of MLX."""
    for q in quant(c):
        q["mode"] = "mxfp4" if q["mode"] != "mxfp4" else "affine"


@config
def other_kind(c):
    q = c["quantization_config"]
    q["bnb_4bit_quant_type"] = {"nf4": "fp4", "fp4": "nf4"}[q["bnb_4bit_quant_type"]]


@config
def other_method(c):
    c["quantization_config"]["quant_method"] = "unheard"


@config
def no_method(c):
    c["quantization_config"].pop("quant_method")


@config
def eight_for_four(c):
    q = c["quantization_config"]
    q["load_in_4bit"], q["load_in_8bit"] = q["load_in_8bit"], q["load_in_4bit"]


@config
def other_format(c):
    q = c["quantization_config"]
    q["format"] = q["config_groups"]["group_0"]["format"] = "unheard"


@config
def no_ignore(c):
    c["quantization_config"].pop("ignore")


@config
def other_targets(c):
    c["quantization_config"]["config_groups"]["group_0"]["targets"] = ["Convolution"]


@config
def layer_more(c):
    (c.get("text_config") or c)["num_hidden_layers"] += 1
    (c.get("text_config") or c).pop("layer_types", None)


@config
def layer_less(c):
    (c.get("text_config") or c)["num_hidden_layers"] -= 1
    (c.get("text_config") or c).pop("layer_types", None)


@config
def other_heads(c):
    (c.get("text_config") or c)["num_attention_heads"] *= 2


@config
def other_kv_heads(c):
    c = c.get("text_config") or c
    c["num_key_value_heads"] = c["num_key_value_heads"] * 2


@config
def other_width(c):
    (c.get("text_config") or c)["hidden_size"] *= 2


@config
def other_ffn(c):
    (c.get("text_config") or c)["intermediate_size"] += 32


@config
def other_vocabulary(c):
    (c.get("text_config") or c)["vocab_size"] += 8


@config
def tied_after_all(c):
    if (c.get("text_config") or c).get("tie_word_embeddings", c.get("tie_word_embeddings")) is not False:
        raise KeyError
    c["tie_word_embeddings"] = True


@config
def untied_after_all(c):
    if not (c.get("text_config") or c).get("tie_word_embeddings", c.get("tie_word_embeddings")):
        raise KeyError
    c["tie_word_embeddings"] = False


@config
def unheard_family(c):
    c["model_type"] = "unheard"
    c["architectures"] = ["UnheardForCausalLM"]


@config
def no_model_type(c):
    c.pop("model_type")


@config
def no_architectures(c):
    c.pop("architectures")


@config
def no_hidden_size(c):
    c.pop("hidden_size")


@config
def other_activation(c):
    c["hidden_act"] = "unheard"


@config
def unheard_rope(c):
    c["rope_scaling"] = {"rope_type": "unheard", "factor": 2.0}
    c.pop("rope_parameters", None)


@config
def as_transformers_5_saves(c):
    """Newer names alone."""
    c.pop("rope_scaling", None)
    theta = c.pop("rope_theta", None) or c["rope_parameters"]["rope_theta"]
    if c.get("rope_parameters", {}).get("rope_type", "default") != "default":
        raise KeyError
    c["rope_parameters"] = {"rope_type": "default", "rope_theta": theta}
    if "num_experts" in c and "moe_intermediate_size" in c:
        c["num_local_experts"] = c.pop("num_experts")


@config
def as_transformers_4_saves(c):
    """Older names alone."""
    rope = c.pop("rope_parameters")
    c["rope_theta"] = rope["rope_theta"]
    if rope.get("rope_type", "default") != "default":
        c["rope_scaling"] = rope


@config
def other_dtype(c):
    """Harmless for most: the engine is asked for a type."""
    c["torch_dtype"] = "bfloat16"
    c.pop("dtype", None)


@config
def unheard_dtype(c):
    c["torch_dtype"] = c["dtype"] = "float12"


def no_tokenizer(folder):
    gone = [p for p in folder.iterdir() if p.name.startswith(("tokenizer", "vocab", "merges", "special_tokens"))]
    for path in gone or [][0]:
        path.unlink()


DAMAGES = [f for f in list(globals().values()) if callable(f) and f.__module__ == __name__ and f.__name__ not in ("read", "write", "tensors", "config", "first", "split", "quant")]
