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
    from neurontune_peft.attribution import attribute as attribute
    from neurontune_peft.evaluation import Report as Report
    from neurontune_peft.evaluation import evaluate as evaluate
    from neurontune_peft.evaluation.compare import Comparison as Comparison
    from neurontune_peft.evaluation.compare import compare as compare
    from neurontune_peft.evaluation.trust import Trust as Trust
    from neurontune_peft.evaluation.trust import verify as verify
    from neurontune_peft.judges import format_judge as format_judge
    from neurontune_peft.neurons import Neurons as Neurons
    from neurontune_peft.neurons import Scores as Scores
    from neurontune_peft.neurons import Site as Site
    from neurontune_peft.prompts import PromptSet as PromptSet
    from neurontune_peft.report import compare_markdown as compare_markdown
    from neurontune_peft.selection import select as select
    from neurontune_peft.sites import find_sites as find_sites
    from neurontune_peft.sites import sites_from_config as sites_from_config
    from neurontune_peft.training import MetaConfig as MetaConfig
    from neurontune_peft.training import TriggerFit as TriggerFit
    from neurontune_peft.training import fit_trigger as fit_trigger
    from neurontune_peft.training import for_flagged_requests as for_flagged_requests
    from neurontune_peft.training import meta_train as meta_train
    from neurontune_peft.training import nearly_flagged as nearly_flagged
    from neurontune_peft.tuner.files import AdapterFile as AdapterFile
    from neurontune_peft.tuner.requests import trigger_log as trigger_log

try:
    __version__ = version("neurontune-peft")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

register()

# Public name to the module that defines it.
_LAZY = {
    "AdapterFile": "tuner.files",
    "Comparison": "evaluation.compare",
    "MetaConfig": "training",
    "Neurons": "neurons",
    "PromptSet": "prompts",
    "Report": "evaluation",
    "Scores": "neurons",
    "Site": "neurons",
    "Trust": "evaluation.trust",
    "TriggerFit": "training",
    "attribute": "attribution",
    "compare": "evaluation.compare",
    "compare_markdown": "report",
    "evaluate": "evaluation",
    "find_sites": "sites",
    "fit_trigger": "training",
    "for_flagged_requests": "training",
    "format_judge": "judges",
    "meta_train": "training",
    "nearly_flagged": "training",
    "select": "selection",
    "sites_from_config": "sites",
    "verify": "evaluation.trust",
    "trigger_log": "tuner.requests",
}

__all__ = ["NeuronTuneConfig", "NeuronTuneModel", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
