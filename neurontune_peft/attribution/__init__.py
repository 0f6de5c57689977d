"""Which neurons matter? Scores of all neurons for refusing harmful requests and for answering ordinary ones."""

from neurontune_peft.attribution.activation_contrast import activation_contrast
from neurontune_peft.attribution.activation_path import activation_path, objective_on_path
from neurontune_peft.attribution.activations import Reading, read_neurons, routing_counts
from neurontune_peft.attribution.causal import causal
from neurontune_peft.attribution.engine import gate_gradients
from neurontune_peft.attribution.gate_path import gate_path
from neurontune_peft.attribution.gradient import gradient
from neurontune_peft.attribution.pairs import PairedBatch, pair
from neurontune_peft.attribution.probe import pooled, probe_weights
from neurontune_peft.attribution.random import random
from neurontune_peft.attribution.rms_change import rms_change
from neurontune_peft.attribution.scoring import attribute
from neurontune_peft.attribution.snip import snip
from neurontune_peft.attribution.wanda import wanda

__all__ = [
    "PairedBatch",
    "Reading",
    "activation_contrast",
    "activation_path",
    "attribute",
    "causal",
    "gate_gradients",
    "gate_path",
    "gradient",
    "objective_on_path",
    "pair",
    "pooled",
    "probe_weights",
    "random",
    "read_neurons",
    "rms_change",
    "routing_counts",
    "snip",
    "wanda",
]
