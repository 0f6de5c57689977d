"""How large are the scales? Learning them over attack families, with or without meta-learning."""

from neurontune_peft.training.config import MetaConfig, for_flagged_requests
from neurontune_peft.training.flagged import nearly_flagged
from neurontune_peft.training.log import Log, StepLog
from neurontune_peft.training.meta import meta_train
from neurontune_peft.training.resistance import NothingToLearnError, check_learnable
from neurontune_peft.training.rounds import with_neurons, without
from neurontune_peft.training.sparsity import drop_zeros, without_zeros
from neurontune_peft.training.trigger import TriggerFit, check_fittable, fit_trigger

__all__ = [
    "Log",
    "MetaConfig",
    "NothingToLearnError",
    "StepLog",
    "TriggerFit",
    "check_fittable",
    "check_learnable",
    "drop_zeros",
    "fit_trigger",
    "for_flagged_requests",
    "meta_train",
    "nearly_flagged",
    "with_neurons",
    "without",
    "without_zeros",
]
