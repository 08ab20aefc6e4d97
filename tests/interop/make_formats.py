"""What a tool makes of a checkpoint by plain rounding: make_formats.py llmcompressor|bitsandbytes FORMAT SOURCE OUT

FORMAT is this program's name for it. Static scales come from a few fixed token sequences."""
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tool, kind, source, out = sys.argv[1:5]


def llmcompressor():
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier

    def integers(bits, group, symmetric=True):
        strategy = dict(strategy="group", group_size=group) if group else dict(strategy="channel")
        weights = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **strategy)
        return dict(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=weights)})

    recipe = {
        "w4a16-64g": lambda: integers(4, 64),
        "w4a16-64g-asym": lambda: integers(4, 64, False),
        "w8a16": lambda: integers(8, None),
        "fp8": lambda: dict(targets="Linear", scheme="FP8_DYNAMIC"),
        "fp8-static": lambda: dict(targets="Linear", scheme="FP8"),
        "int8": lambda: dict(targets="Linear", scheme="W8A8"),
        "nvfp4a16": lambda: dict(targets="Linear", scheme="NVFP4A16"),
        "nvfp4": lambda: dict(targets="Linear", scheme="NVFP4"),
        "mxfp4": lambda: dict(targets="Linear", scheme="MXFP4A16"),
    }[kind]()
    model = AutoModelForCausalLM.from_pretrained(source, dtype="auto")
    more = {}
    if kind in ("fp8-static", "nvfp4"):
        ids = [[(i * 7919 + j * 104729) % model.config.vocab_size for j in range(128)] for i in range(8)]
        rows = [dict(input_ids=row, attention_mask=[1] * len(row)) for row in ids]
        more = dict(dataset=Dataset.from_list(rows), num_calibration_samples=8, max_seq_length=128)
    oneshot(model=model, recipe=[QuantizationModifier(ignore=["lm_head"], **recipe)], **more)
    model.save_pretrained(out, save_compressed=True)


def bitsandbytes():
    from transformers import BitsAndBytesConfig

    if kind == "bnb-int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind[:3],
            bnb_4bit_use_double_quant=kind.endswith("-dq"),
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    model = AutoModelForCausalLM.from_pretrained(source, quantization_config=config, dtype=torch.float16, device_map="cpu")
    model.save_pretrained(out)


{"llmcompressor": llmcompressor, "bitsandbytes": bitsandbytes}[tool]()
AutoTokenizer.from_pretrained(source).save_pretrained(out)
