"""Which neurons matter? Scores of all neurons for refusing harmful requests and for answering ordinary ones."""

from neurontune_peft.attribution.engine import gate_gradients
from neurontune_peft.attribution.gate_path import gate_path
from neurontune_peft.attribution.gradient import gradient
from neurontune_peft.attribution.random import random
from neurontune_peft.attribution.scoring import attribute

__all__ = ["attribute", "gate_gradients", "gate_path", "gradient", "random"]
