"""What the installed release of an engine knows of families: the tables in src/packed/engines (mlx_lm.tsv) and src/convert/folder/engines.

Usage: engine_tables.py mlx > mlx_lm.tsv            (Python that has mlx-lm)
       engine_tables.py transformers > transformers.txt
       engine_tables.py vllm > vllm.txt

mlx_lm.tsv: model type, the keys that config.json must have, the base of the rotary frequencies where it does not say, and
`alias TYPE` for names that stand for another. transformers.txt: model types;
vllm.txt: names of classes."""

import dataclasses
import importlib
import os
import sys


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
        print(name, " ".join(needed), "" if newer or not base else float(base[0]), sep="\t")
    for name, other in sorted(MODEL_REMAPPING.items()):
        print(name, f"alias {other}", "", sep="\t")


def transformers():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    print("\n".join(sorted(CONFIG_MAPPING_NAMES)))


def vllm():
    from vllm.model_executor.models.registry import _VLLM_MODELS

    print("\n".join(sorted(_VLLM_MODELS)))


{"mlx": mlx, "transformers": transformers, "vllm": vllm}[sys.argv[1]]()
