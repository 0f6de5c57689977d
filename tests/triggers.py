"""A tiny model whose adapter decides for each request, shared by the tests of dynamic modulation."""

import torch
from adapters import randomize, some_neurons
from architectures import tiny_model, tokens
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.tuner.layer import NeuronTuneLayer

OPENING, SUFFIX = [59], [60, 61]  # never among the other tokens of `requests`


def requests(rows: int = 6, length: int = 6, *, seed: int = 0) -> torch.Tensor:
    """Random requests between opening and generation prompt, shape `(rows, length + 2)`."""
    ids = tokens(rows, length, seed=seed) % 56 + 3
    ids[:, 0] = OPENING[0]
    return torch.cat([ids, torch.tensor(SUFFIX).expand(rows, -1)], dim=1)


def dynamic_config(base: PreTrainedModel, **options: object) -> NeuronTuneConfig:
    template = {"trigger_suffix": SUFFIX, "trigger_opening": OPENING, "trigger_window": 4}
    settings = {"task_type": "CAUSAL_LM", "modulation": "dynamic"} | template | options
    if "neurons" not in options:
        settings["neurons"] = some_neurons(base)
    return NeuronTuneConfig(**settings)


def set_random_triggers(model: nn.Module, *, seed: int = 1, name: str = "default") -> None:
    generator = torch.Generator().manual_seed(seed)
    for layer in neuron_layers(model):
        if name in layer.neurontune_trigger:
            weights = layer.neurontune_trigger[name]
            weights.copy_(torch.randn(weights.shape, generator=generator))


def neuron_layers(model: nn.Module) -> list[NeuronTuneLayer]:
    return [module for module in model.modules() if isinstance(module, NeuronTuneLayer)]


def dynamic_model(model_type: str = "llama", *, std: float = 3.0, **options: object) -> PeftModel:
    """A model half of whose `requests()` trigger; its scales are strong enough to change answers."""
    base = tiny_model(model_type)
    model = get_peft_model(base, dynamic_config(base, **options))
    randomize(model, std=std)
    model.requires_grad_(False)
    set_random_triggers(model)
    model.eval()
    split_in_half(model)
    return model


def split_in_half(model: PeftModel, name: str = "default") -> None:
    """Put the threshold between the third and the fourth of six requests."""
    scores = sorted(decision.score for decision in decisions(model, requests(), adapter_names=[name] * 6))
    model.peft_config[name].trigger_threshold = (scores[2] + scores[3]) / 2


def decisions(model: PeftModel, ids: torch.Tensor, **options: object) -> list:
    with torch.no_grad(), model.trigger_log() as log:
        model(input_ids=ids, **options)
    return log


def triggered(model: PeftModel, ids: torch.Tensor, **options: object) -> list[bool]:
    return [decision.strength > 0 for decision in decisions(model, ids, **options)]


def logits(model: nn.Module, ids: torch.Tensor, **options: object) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=ids, **options).logits
