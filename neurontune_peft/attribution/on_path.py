"""Between plain and attacked prompts: activations of both where they align, and a model that runs in between."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from neurontune_peft.attribution.activations import Reading, read_neurons
from neurontune_peft.attribution.engine import site_modules
from neurontune_peft.attribution.experts import ExpertsCall, replaced_experts
from neurontune_peft.attribution.pairs import PairedBatch
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective, TokenBatch


class Alignment:
    """
    Which tokens of a model's current call are the last of a prompt or belong to a response.

    The objective decides what follows the prompts, so the call itself is looked at.

    Args:
        batch (`TokenBatch`): B prompts, perhaps with responses.
    """

    def __init__(self, batch: TokenBatch) -> None:
        self.prompt_lengths = (batch.attention_mask.bool() & ~batch.response_mask).sum(dim=1)  # (B,)
        self.mask = torch.zeros(0, dtype=torch.bool)  # (R * T,), of the current call
        self.examples = torch.zeros(0, dtype=torch.long)  # (A,), of its aligned tokens

    @contextmanager
    def follow(self, model: nn.Module) -> Iterator[Alignment]:
        """Look at the calls of a model while the context is open."""
        handle = model.register_forward_pre_hook(self._look, with_kwargs=True)
        try:
            yield self
        finally:
            handle.remove()

    def _look(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        real = kwargs.get("attention_mask")
        if real is None:
            raise ValueError(
                "got an objective that calls the model without attention_mask; expected one, to find where prompts "
                "end; pass it by name"
            )
        per_example = real.shape[0] // len(self.prompt_lengths)
        last = (self.prompt_lengths - 1).repeat_interleave(per_example).unsqueeze(1)  # (R, 1)
        mask = real.bool() & (real.long().cumsum(dim=1) - 1 >= last)  # (R, T)
        rows = torch.arange(len(real), device=real.device).unsqueeze(1).expand_as(mask)
        self.mask, self.examples = mask.flatten(), rows[mask] // per_example

    def aligned(self, reading: Reading) -> tuple[Tensor, Tensor]:
        """Places `(m,)` among the A aligned tokens, and activations `(m, I)`, of those that a reading holds."""
        mask = self.mask.to(reading.tokens.device)
        kept = mask[reading.tokens]
        places = (mask.long().cumsum(dim=0) - 1)[reading.tokens[kept]]
        return places, reading.values[kept].to(torch.promote_types(reading.values.dtype, torch.float32))


@dataclass(frozen=True)
class Span:
    """
    The way of some of a site's neurons, adjacent ones, for some aligned tokens.

    Args:
        start (`int`): Index of the first of its I neurons.
        places (`torch.Tensor`): Places among the A aligned tokens, `(n,)`.
        examples (`torch.Tensor`): The example of each, `(n,)`.
        origin (`torch.Tensor`): Activations at position 0, `(n, I)`.
        direction (`torch.Tensor`): What is added up to position 1, `(n, I)`.
    """

    start: int
    places: Tensor
    examples: Tensor
    origin: Tensor
    direction: Tensor


@dataclass
class SitePath:
    """
    The way of a site's neurons from plain to attacked prompts.

    Tokens of the two may go to different experts, so that the neurons of an expert come from 0 or go to 0 there.

    Args:
        module (`nn.Module`): The site's module.
        spans (`list[Span]`): Its neurons.
        outputs (`list[torch.Tensor]`): Of fused experts, what they return for aligned tokens, plain and attacked.
    """

    module: nn.Module
    spans: list[Span] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def leaves(self, position: float) -> list[Tensor]:
        """Activations at a position from 0 to 1, one tensor for each span."""
        return [span.origin + position * span.direction for span in self.spans]


def activation_paths(
    model: nn.Module, batch: PairedBatch, sites: Mapping[str, Site], objective: Objective
) -> dict[str, SitePath]:
    """
    Read the activations of plain and attacked prompts where they align, in one forward pass each.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch ([`PairedBatch`]): B examples.
        sites (`Mapping[str, Site]`): The sites that move.
        objective (`Callable`): `(model, batch) -> (B,)`.

    Returns:
        `dict[str, SitePath]`: Site to its path.
    """
    paths = {name: SitePath(module) for name, module in site_modules(model, sites).items()}
    plain = _readings(model, batch.plain, sites, paths, objective)
    attacked = _readings(model, batch, sites, paths, objective)
    for name, path in paths.items():
        if sites[name].kind == "linear":
            (start, places, examples, before), (_, _, _, after) = *plain[name], *attacked[name]
            path.spans.append(Span(start, places, examples, before, after - before))
        else:
            for start, places, examples, before in plain[name]:
                path.spans.append(Span(start, places, examples, before, -before))
            for start, places, examples, after in attacked[name]:
                path.spans.append(Span(start, places, examples, torch.zeros_like(after), after))
    return paths


def _readings(
    model: nn.Module, batch: TokenBatch, sites: Mapping[str, Site], paths: Mapping[str, SitePath], objective: Objective
) -> dict[str, list[tuple[int, Tensor, Tensor, Tensor]]]:
    """Site to (start, places, examples, activations) of the aligned tokens; outputs of experts go into the paths."""
    found: dict[str, list[tuple[int, Tensor, Tensor, Tensor]]] = {name: [] for name in sites}

    def take(reading: Reading) -> None:
        places, values = alignment.aligned(reading)
        found[reading.site].append((reading.start, places, alignment.examples.to(places.device)[places], values))

    with torch.no_grad(), Alignment(batch).follow(model) as alignment, ExitStack() as stack:
        stack.enter_context(read_neurons(model, sites, take))
        for name, path in paths.items():
            if sites[name].kind == "experts":
                hook = partial(_keep_output, path, alignment)
                stack.callback(path.module.register_forward_hook(hook).remove)
        objective(model, batch)
    return found


def _keep_output(path: SitePath, alignment: Alignment, module: nn.Module, args: Any, output: Tensor) -> None:
    path.outputs.append(output.detach()[_rows_of(output, alignment)])


def _rows_of(output: Tensor, alignment: Alignment) -> Tensor:
    """Mask of an experts module's aligned rows, which stand once for each expert where input is sorted by expert."""
    mask = alignment.mask.to(output.device)
    return mask.repeat(len(output) // len(mask))


@contextmanager
def placed(
    model: nn.Module,
    batch: PairedBatch,
    paths: Mapping[str, SitePath],
    leaves: Mapping[str, Sequence[Tensor]],
    position: float,
) -> Iterator[None]:
    """
    Set the activations of aligned tokens while the context is open; all else runs as for the attacked prompts.

    Args:
        model (`nn.Module`): The model.
        batch ([`PairedBatch`]): B examples.
        paths (`Mapping[str, SitePath]`): The sites that move.
        leaves (`Mapping[str, Sequence[torch.Tensor]]`): Their activations, as [`SitePath.leaves`] gives them.
        position (`float`): Where on the path these are.
    """
    with Alignment(batch).follow(model) as alignment, ExitStack() as stack:
        for name, path in paths.items():
            if path.outputs:
                run = partial(_run_placed, path, leaves[name], position, alignment)
                stack.enter_context(replaced_experts(path.module, run))
            else:
                hook = partial(_place_input, leaves[name][0], alignment)
                stack.callback(path.module.register_forward_pre_hook(hook).remove)
        yield


def _place_input(leaf: Tensor, alignment: Alignment, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Any, ...]:
    x = args[0]  # (R, T, F) or (R * T, F)
    mask = alignment.mask.to(x.device).view(*x.shape[:-1], 1)
    return (x.masked_scatter(mask, leaf.to(x.dtype)), *args[1:])


def _run_placed(
    path: SitePath, leaves: Sequence[Tensor], position: float, alignment: Alignment, call: ExpertsCall
) -> Tensor:
    """
    Output of experts on the path. It is linear in their activations, so it lies between the outputs of both prompts.
    """
    output = call.run()
    plain, attacked = path.outputs  # (A, H) or (E * A, H)
    precision = torch.promote_types(output.dtype, torch.float32)
    between = torch.lerp(plain.to(precision), attacked.to(precision), position)
    for span, leaf in zip(path.spans, leaves, strict=True):
        expert = span.start // call.size
        # Adds nothing, but the gradient of the activations passes here.
        nothing = call.write(expert, (leaf - leaf.detach()).to(output.dtype))
        rows = span.places if call.layout.routed else span.places + expert * len(alignment.examples)
        between = between.index_add(0, rows, nothing.to(precision))
    return output.masked_scatter(_rows_of(output, alignment).unsqueeze(1), between.to(output.dtype))
