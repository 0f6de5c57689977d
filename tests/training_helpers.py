"""A tiny adapter to train, and toy problems whose answer is known; shared by the tests of training."""

from contextlib import contextmanager

import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import get_peft_model
from torch import nn

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.neurons import Neurons
from neurontune_peft.training import MetaConfig, loop
from neurontune_peft.training.deltas import Deltas

TOKENIZER = tiny_tokenizer()
PROMPTS = tiny_prompt_set()
SITES = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")
SMALL = MetaConfig(
    steps=6,
    support_size=1,
    query_size=1,
    plain_size=1,
    benign_size=1,
    borderline_size=1,
    wrapped_size=1,
    inner_steps=2,
    refusal_targets="phrases",  # a random model refuses nothing
)


def neurons_of(per_role=12):
    return Neurons.from_ranked(
        {
            "safety": [(site, index) for index in range(per_role) for site in SITES],
            "utility": [(site, index) for index in range(20, 26) for site in SITES],
        },
        widths=dict.fromkeys(SITES, 48),
    )


NEURONS = neurons_of()


def peft_model(*, neurons_per_role=12, **options):
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons_of(neurons_per_role), **options)
    return get_peft_model(tiny_llama(), config)


def values_of(model):
    return torch.cat([p.detach().clone() for n, p in model.named_parameters() if "neurontune_delta" in n])


def toy_deltas(start, *, low=-torch.inf, high=torch.inf):
    """Deltas of one site that belong to no model."""
    holder = nn.ParameterDict({"default": nn.Parameter(start.clone())})
    return Deltas((holder,), "default", (torch.full_like(start, low),), (torch.full_like(start, high),))


@contextmanager
def interrupted_after(steps, monkeypatch):
    """Training in this block is interrupted in the middle of a step's update, once so many steps are done."""
    original = loop.update

    def interrupted(state, outer, config):
        original(state, outer, config)
        if state.step == steps:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "update", interrupted)
        yield
