"""
How large are the scales? Learning them over attack families, with or without meta-learning.

Names are loaded when they are first used, so that the command line can show the options of training without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neurontune_peft.training.config import MetaConfig as MetaConfig
    from neurontune_peft.training.config import for_flagged_requests as for_flagged_requests
    from neurontune_peft.training.flagged import nearly_flagged as nearly_flagged
    from neurontune_peft.training.log import Log as Log
    from neurontune_peft.training.log import StepLog as StepLog
    from neurontune_peft.training.meta import meta_train as meta_train
    from neurontune_peft.training.reading import reading_scores as reading_scores
    from neurontune_peft.training.resistance import NothingToLearnError as NothingToLearnError
    from neurontune_peft.training.resistance import check_learnable as check_learnable
    from neurontune_peft.training.rounds import with_neurons as with_neurons
    from neurontune_peft.training.rounds import without as without
    from neurontune_peft.training.sparsity import drop_zeros as drop_zeros
    from neurontune_peft.training.sparsity import without_zeros as without_zeros
    from neurontune_peft.training.trigger import TriggerFit as TriggerFit
    from neurontune_peft.training.trigger import check_fittable as check_fittable
    from neurontune_peft.training.trigger import fit_trigger as fit_trigger

# Name to the module that defines it.
_LAZY = {
    "Log": "log",
    "MetaConfig": "config",
    "NothingToLearnError": "resistance",
    "StepLog": "log",
    "TriggerFit": "trigger",
    "check_fittable": "trigger",
    "check_learnable": "resistance",
    "drop_zeros": "sparsity",
    "fit_trigger": "trigger",
    "for_flagged_requests": "config",
    "meta_train": "meta",
    "nearly_flagged": "flagged",
    "reading_scores": "reading",
    "with_neurons": "rounds",
    "without": "rounds",
    "without_zeros": "sparsity",
}

__all__ = [*_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
