"""Finds the program that this package brings along; `python -m quantize` runs it."""

import os
import sysconfig


def find_program() -> str:
    """The path of the `quantize` program that was installed with this package."""
    name = "quantize" + (sysconfig.get_config_var("EXE") or "")
    folders = [sysconfig.get_path("scripts"), sysconfig.get_path("scripts", scheme=sysconfig.get_preferred_scheme("user"))]
    # pip install --target puts it beside the package.
    folders.append(os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "bin"))
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    raise FileNotFoundError(f"{name} is in none of {', '.join(folders)}; install quantize-cli again")
