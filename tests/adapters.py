"""Small adapters with non-trivial scales, shared by the tests of the PEFT method."""

from pathlib import Path

import torch
from architectures import tiny_model
from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites


def some_neurons(model: PreTrainedModel) -> Neurons:
    """Three safety and two utility neurons at each site; ranks run across the sites."""
    widths = {site.name: site.width for site in find_sites(model).values()}
    sites = list(widths)
    return Neurons.from_ranked(
        {
            "safety": [(site, index) for index in (5, 0, 17) for site in sites],
            "utility": [(site, index) for index in (3, 40) for site in reversed(sites)],
        },
        widths=widths,
    )


def randomize(model: torch.nn.Module, *, seed: int = 0, std: float = 0.5) -> None:
    """Give every delta a random value."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "neurontune_delta" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * std)


def tuned_model(base: PreTrainedModel | None = None, *, sparse: bool = True) -> PeftModel:
    """A tiny model with a sparse or dense adapter whose scales differ from 1."""
    base = base or tiny_model()
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=some_neurons(base) if sparse else None)
    model = get_peft_model(base, config)
    randomize(model)
    return model.eval()


def saved_adapter(directory: Path, **options: object) -> tuple[Path, PeftModel]:
    """Save a tuned model's adapter; returns its directory and the model."""
    model = tuned_model(**options)  # type: ignore[arg-type]
    model.save_pretrained(directory)
    return directory, model
