"""What the installed release of an engine knows of families: the tables in src/packed/engines (mlx_lm.tsv) and src/convert/folder/engines.

Usage: engine_tables.py mlx > mlx_lm.tsv            (Python that has mlx-lm)
       engine_tables.py transformers > transformers.txt
       engine_tables.py vllm > vllm.txt

mlx_lm.tsv: model type, the keys that config.json must have, the base of the rotary frequencies where it does not say, the
names under which the number of experts is read, and `alias TYPE` for names that stand for another. transformers.txt: model types, with the
names under which the number of experts is read;
vllm.txt: names of classes."""

import dataclasses
import importlib
import inspect
import os
import sys

EXPERTS = "num_local_experts num_experts n_routed_experts moe_num_experts".split()


def mlx():
    import mlx_lm.models
    from mlx_lm.utils import MODEL_REMAPPING

    for file in sorted(os.listdir(os.path.dirname(mlx_lm.models.__file__))):
        name = file[: -len(".py")]
        if not file.endswith(".py"):
            continue
        try:
            module = importlib.import_module(f"mlx_lm.models.{name}")
            args = module.ModelArgs
            module.Model
        except (AttributeError, ImportError, SystemExit):
            # Files that are no models, and one that wants another package.
            continue
        absent = dataclasses.MISSING
        fields = [f for f in dataclasses.fields(args) if f.name != "model_type"]
        needed = [f.name for f in fields if f.default is absent and f.default_factory is absent]
        base = [f.default for f in fields if f.name == "rope_theta" and f.default is not absent and f.default is not None]
        newer = any(f.name == "rope_parameters" for f in fields)
        experts = " ".join(key for key in EXPERTS if any(f.name == key for f in fields))
        print(name, " ".join(needed), "" if newer or not base else float(base[0]), experts, sep="\t")
    for name, other in sorted(MODEL_REMAPPING.items()):
        print(name, f"alias {other}", "", "", sep="\t")


def transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    for name in sorted(CONFIG_MAPPING_NAMES):
        try:
            config = CONFIG_MAPPING[name]
        except (AttributeError, ImportError, KeyError):
            print(name)
            continue
        read = set(inspect.signature(config.__init__).parameters) | set(getattr(config, "__dataclass_fields__", {}))
        read |= set(getattr(config, "attribute_map", None) or {})
        print("\t".join([name, " ".join(key for key in EXPERTS if key in read)]).rstrip())


def vllm():
    from vllm.model_executor.models.registry import _VLLM_MODELS

    print("\n".join(sorted(_VLLM_MODELS)))


{"mlx": mlx, "transformers": transformers, "vllm": vllm}[sys.argv[1]]()
