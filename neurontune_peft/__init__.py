"""
Neuron-level safety tuning for causal language models, as a PEFT method.

Importing this package registers the method `NEURONTUNE` with PEFT. Everything else is loaded when it is first used.
"""

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurontune_peft.attribution import attribute as attribute
    from neurontune_peft.evaluation import Generation as Generation
    from neurontune_peft.evaluation import Report as Report
    from neurontune_peft.evaluation import evaluate as evaluate
    from neurontune_peft.evaluation.compare import Comparison as Comparison
    from neurontune_peft.evaluation.compare import compare as compare
    from neurontune_peft.evaluation.decide import Certificate as Certificate
    from neurontune_peft.evaluation.decide import Frontier as Frontier
    from neurontune_peft.evaluation.decide import Stress as Stress
    from neurontune_peft.evaluation.decide import certify as certify
    from neurontune_peft.evaluation.decide import stress as stress
    from neurontune_peft.evaluation.decide import sweep as sweep
    from neurontune_peft.evaluation.trust import Trust as Trust
    from neurontune_peft.evaluation.trust import verify as verify
    from neurontune_peft.export import export_adapter as export_adapter
    from neurontune_peft.hub import audit as audit
    from neurontune_peft.judges import ClassifierJudge as ClassifierJudge
    from neurontune_peft.judges import EndpointJudge as EndpointJudge
    from neurontune_peft.judges import RubricJudge as RubricJudge
    from neurontune_peft.judges import ensemble as ensemble
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
    from neurontune_peft.training import reading_scores as reading_scores
    from neurontune_peft.tuner import NeuronTuneConfig as NeuronTuneConfig
    from neurontune_peft.tuner import NeuronTuneModel as NeuronTuneModel
    from neurontune_peft.tuner.files import AdapterFile as AdapterFile
    from neurontune_peft.tuner.gate import TriggerGate as TriggerGate
    from neurontune_peft.tuner.requests import trigger_log as trigger_log
    from neurontune_peft.tuner.trigger_file import export_trigger as export_trigger

try:
    __version__ = version("neurontune-peft")
except PackageNotFoundError:  # run from a source tree that is not installed
    __version__ = "0+unknown"

# Public name to the module that defines it.
_LAZY = {
    "AdapterFile": "tuner.files",
    "Certificate": "evaluation.decide",
    "ClassifierJudge": "judges",
    "Comparison": "evaluation.compare",
    "EndpointJudge": "judges",
    "Frontier": "evaluation.decide",
    "Generation": "evaluation",
    "MetaConfig": "training",
    "NeuronTuneConfig": "tuner",
    "NeuronTuneModel": "tuner",
    "Neurons": "neurons",
    "PromptSet": "prompts",
    "Report": "evaluation",
    "RubricJudge": "judges",
    "Scores": "neurons",
    "Site": "neurons",
    "Stress": "evaluation.decide",
    "TriggerFit": "training",
    "TriggerGate": "tuner.gate",
    "Trust": "evaluation.trust",
    "attribute": "attribution",
    "audit": "hub",
    "certify": "evaluation.decide",
    "compare": "evaluation.compare",
    "compare_markdown": "report",
    "ensemble": "judges",
    "evaluate": "evaluation",
    "export_adapter": "export",
    "export_trigger": "tuner.trigger_file",
    "find_sites": "sites",
    "fit_trigger": "training",
    "for_flagged_requests": "training",
    "format_judge": "judges",
    "meta_train": "training",
    "nearly_flagged": "training",
    "reading_scores": "training",
    "select": "selection",
    "sites_from_config": "sites",
    "stress": "evaluation.decide",
    "sweep": "evaluation.decide",
    "trigger_log": "tuner.requests",
    "verify": "evaluation.trust",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


def _is_program() -> bool:
    """Whether this process is `neurontune` or `python -m neurontune_peft`, which show help without loading torch."""
    looking = sys.argv[:1] == ["-m"]  # so it is while Python looks for the module that it shall run
    by_module = looking and ("-m", __name__) in zip(sys.orig_argv, sys.orig_argv[1:], strict=False)
    script = sys.argv[0].replace("\\", "/").rpartition("/")[2] if sys.argv else ""
    return by_module or script in ("neurontune", "neurontune.exe")


if not _is_program():
    import_module(f"{__name__}.tuner")  # registers the method; a program's command imports it when it needs it
