"""A tiny base model and an adapter on disk, and the calls that the tests of exports share."""

from dataclasses import dataclass
from pathlib import Path

import torch
from adapters import randomize, some_neurons
from architectures import tiny_model
from helpers import tiny_tokenizer
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from neurontune_peft import NeuronTuneConfig

VOCABULARY = 261  # of `tiny_tokenizer()`


@dataclass(frozen=True)
class Case:
    """Directories of a base model and of an adapter for it."""

    base: Path
    adapter: Path

    def model(self, **options: object) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(self.base, **options).eval()

    def tuned(self, *, strength: float = 1.0, **counts: int) -> PeftModel:
        model = PeftModel.from_pretrained(self.model(), self.adapter)
        model.set_strength(strength)
        model.set_neuron_counts(**counts)
        return model.eval()


def make_case(
    directory: Path,
    model_type: str = "llama",
    *,
    shard: str = "5GB",
    config: dict | None = None,
    base: PreTrainedModel | None = None,
    **settings: object,
) -> Case:
    """Save a tiny model with its tokenizer, and an adapter with random scales."""
    base = base or tiny_model(model_type, vocab_size=VOCABULARY, **settings)
    base.save_pretrained(directory / "base", max_shard_size=shard)
    tiny_tokenizer().save_pretrained(directory / "base")
    options = {"neurons": some_neurons(base)} if config is None else config
    model = get_peft_model(base, NeuronTuneConfig(task_type="CAUSAL_LM", **options))
    model.peft_config["default"].base_model_name_or_path = str(directory / "base")
    randomize(model)
    model.save_pretrained(directory / "adapter")
    return Case(directory / "base", directory / "adapter")


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.tensor([[1, 40, 90, 11, 200, 7, 33, 150]])
    with torch.no_grad():
        return model(input_ids=ids % model.config.vocab_size).logits[0]


def state(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory).state_dict()
