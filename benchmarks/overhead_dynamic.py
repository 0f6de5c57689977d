"""What does deciding for each request cost? Dynamic modulation beside the bare model; run by overhead.py."""

from collections.abc import Callable
from itertools import pairwise

import torch
from overhead import neurontune, show_forward
from peft import PeftModel
from torch import nn

SUFFIX = [98, 99]  # ends every prompt


def dynamic(make: Callable[[], nn.Module], ids: torch.Tensor, triggering: int) -> PeftModel:
    """An adapter whose trigger fires on so many rows of a batch that ends in `SUFFIX`."""
    model = neurontune(make, 128).requires_grad_(False)
    torch.manual_seed(0)
    weights = {site: torch.randn(part.numel(), 2) for site, part in model.get_neurons("0").indices["safety"].items()}
    tuner = model.base_model
    tuner.set_trigger(weights, bias=0.0, threshold=0.0, suffix=SUFFIX, window=24, adapter_name="0")
    with torch.no_grad(), model.trigger_log() as log:
        model(input_ids=ids)
    scores = sorted((decision.score for decision in log), reverse=True)
    between = [scores[0] + 1, *((a + b) / 2 for a, b in pairwise(scores)), scores[-1] - 1]
    tuner.set_trigger(weights, bias=0.0, threshold=between[triggering], suffix=SUFFIX, window=24, adapter_name="0")
    with torch.no_grad(), model.trigger_log() as log:
        model(input_ids=ids)
    assert sum(decision.strength > 0 for decision in log) == triggering
    return model


def prefill_of(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """A prompt, its cache kept."""
    return torch.no_grad()(lambda: model(input_ids=ids, use_cache=True))


def decode_of(model: nn.Module, ids: torch.Tensor) -> Callable[[], object]:
    """The same next token again and again, behind a prompt that was decided about."""
    cache = prefill_of(model, ids)().past_key_values

    @torch.no_grad()
    def step() -> None:
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        cache.crop(-1)

    return step


def show_dynamic(make: Callable[[], nn.Module], rows: int, tokens: int, repeats: int) -> None:
    """Dynamic modulation: what deciding costs, and what it costs where something triggers."""
    ids = torch.randint(3, 90, (rows, tokens))
    ids[:, -len(SUFFIX) :] = torch.tensor(SUFFIX)
    models = {"bare": make().eval(), "static": neurontune(make, 128)}
    named = {"nothing triggers": 0, "one row triggers": 1, "all rows trigger": rows}
    models |= {f"dynamic, {name}": dynamic(make, ids, count) for name, count in named.items()}
    cases = {
        f"prefill, {rows} x {tokens}": {name: prefill_of(model, ids) for name, model in models.items()},
        f"decode, {rows} x 1": {name: decode_of(model, ids) for name, model in models.items()},
    }
    show_forward("Dynamic modulation, small whole model (ratio to the bare one)", cases, repeats)
