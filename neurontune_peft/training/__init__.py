"""How large are the scales? Learning them over attack families, with or without meta-learning."""

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.log import Log, StepLog
from neurontune_peft.training.meta import meta_train
from neurontune_peft.training.resistance import NothingToLearnError, check_learnable
from neurontune_peft.training.sparsity import drop_zeros, without_zeros

__all__ = [
    "Log",
    "MetaConfig",
    "NothingToLearnError",
    "StepLog",
    "check_learnable",
    "drop_zeros",
    "meta_train",
    "without_zeros",
]
