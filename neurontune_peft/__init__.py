"""
Neuron-level safety tuning for causal language models, as a PEFT method.

Importing this package registers the method `NEURONTUNE` with PEFT. Everything else is loaded when it is first used.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from neurontune_peft.tuner import NeuronTuneConfig, NeuronTuneModel
from neurontune_peft.tuner._register import register

if TYPE_CHECKING:
    from neurontune_peft.neurons import Neurons as Neurons
    from neurontune_peft.neurons import Scores as Scores
    from neurontune_peft.neurons import Site as Site
    from neurontune_peft.sites import find_sites as find_sites

try:
    __version__ = version("neurontune-peft")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

register()

_LAZY = {
    "Neurons": "neurons",
    "Scores": "neurons",
    "Site": "neurons",
    "find_sites": "sites",
}

__all__ = ["NeuronTuneConfig", "NeuronTuneModel", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
