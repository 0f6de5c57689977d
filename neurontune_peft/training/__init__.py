"""How large are the scales? Learning them over attack families, with or without meta-learning."""

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.log import Log, StepLog
from neurontune_peft.training.meta import meta_train
from neurontune_peft.training.trigger import TriggerFit, fit_trigger

__all__ = ["Log", "MetaConfig", "StepLog", "TriggerFit", "fit_trigger", "meta_train"]
