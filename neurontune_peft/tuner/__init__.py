"""The PEFT method: configuration, layers, tuner and registration, which happens on import."""

from neurontune_peft.tuner._register import register
from neurontune_peft.tuner.config import NeuronTuneConfig
from neurontune_peft.tuner.layer import NeuronTuneLayer
from neurontune_peft.tuner.model import NeuronTuneModel

__all__ = ["NeuronTuneConfig", "NeuronTuneLayer", "NeuronTuneModel"]

register()
