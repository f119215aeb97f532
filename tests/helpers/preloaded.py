"""What commands import, imported once: by the server from which tests fork processes."""

from __future__ import annotations

import gc
import importlib
import pkgutil
from importlib.util import find_spec

import torch
import transformers.models.gpt2.modeling_gpt2
import transformers.models.llama.modeling_llama  # noqa: F401
from hydra.core.plugins import Plugins

import caldpo
import tests.resume.child  # noqa: F401


def import_all() -> None:
    """Import every module of the project and what it imports only when it trains."""
    for module in pkgutil.walk_packages(caldpo.__path__, "caldpo."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    drawing = ("matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
    for library in ("transformers.optimization", "peft", *drawing):
        if find_spec(library.partition(".")[0]) is not None:
            importlib.import_module(library)


# bitsandbytes, which PEFT imports, initialises CUDA where there is a GPU, and no forked process could use CUDA then
if not torch.cuda.is_available():
    import_all()
Plugins.instance()  # looks for plugins once
gc.collect()
gc.freeze()  # what is here stays: the collector of a forked process need not look at it, nor copy its pages
