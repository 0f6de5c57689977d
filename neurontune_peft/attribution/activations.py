"""What neurons do: one way to read their activations during a forward pass, and sums of them per example.

Nothing is kept: whoever reads is shown a part of a site's activations while the pass goes on, and reduces it at once.
A linear site comes in one part, fused experts in one part for each expert. There an activation is weighted by the
token's routing weight for that expert; for tokens that are not routed to it, it is 0, and they are not in the part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neurontune_peft.attribution.engine import innermost, site_modules
from neurontune_peft.attribution.experts import ExpertsCall, replaced_experts
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import call_options
from neurontune_peft.tuner.experts import experts_layout, experts_shape


@dataclass(frozen=True)
class Reading:
    """
    Activations of some of a site's neurons, adjacent ones, for some of a call's tokens.

    Args:
        site (`str`): The site.
        start (`int`): Index of the first of its I neurons.
        count (`int`): Number of tokens in the call, `R * T`.
        tokens (`torch.Tensor`): Places among the call's `R * T` tokens, row after row, `(n,)`.
        values (`torch.Tensor`): Activations as an adapter scales them, `(n, I)`.
        output (`torch.Tensor`): What they make the module return: all of a linear site's, or an expert's `(n, H)`.
    """

    site: str
    start: int
    count: int
    tokens: Tensor
    values: Tensor
    output: Tensor

    @property
    def columns(self) -> slice:
        """`slice`: The neurons within the site."""
        return slice(self.start, self.start + self.values.shape[1])

    def examples(self, rows: int) -> Tensor:
        """The example of each token, `(n,)`, where the call holds `rows` examples one after the other."""
        return self.tokens // (self.count // rows)


Take = Callable[[Reading], Tensor | None]


@contextmanager
def read_neurons(model: nn.Module, sites: Mapping[str, Site], take: Take) -> Iterator[None]:
    """
    Show the activations of the sites' neurons to a function while the context is open.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        sites (`Mapping[str, Site]`): The sites to read.
        take (`Callable`):
            Is shown each [`Reading`], during the forward pass; a tensor that it returns takes the place of the output.
    """
    with ExitStack() as stack:
        for name, module in site_modules(model, sites).items():
            if sites[name].kind == "experts":
                stack.enter_context(replaced_experts(module, partial(_read_experts, name, take)))
            else:
                stack.callback(module.register_forward_hook(partial(_read_linear, name, take)).remove)
        yield


def _read_linear(site: str, take: Take, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    values = args[0].detach().flatten(0, -2)  # (R * T, F)
    return take(Reading(site, 0, len(values), torch.arange(len(values), device=values.device), values, output))


def _read_experts(site: str, take: Take, call: ExpertsCall) -> Tensor:
    def see(expert: int, tokens: Tensor, activations: Tensor, answer: Tensor) -> Tensor | None:
        return take(Reading(site, expert * call.size, call.tokens, tokens, activations.detach(), answer))

    return call.run(see=see)


def token_sums(
    model: nn.Module,
    batch: Any,
    sites: Mapping[str, Site],
    mask: Tensor,
    *,
    power: int = 1,
    see: Callable[[Reading], None] | None = None,
) -> dict[str, Tensor]:
    """
    Sums of activations, or of a power of them, over chosen tokens, from one forward pass.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples of T tokens.
        sites (`Mapping[str, Site]`): The sites to read.
        mask (`torch.Tensor`): Which tokens count, bool, `(B, T)`.
        power (`int`, *optional*, defaults to `1`): Power that is taken of each activation.
        see (`Callable`, *optional*): Is shown each reading, too.

    Returns:
        `dict[str, torch.Tensor]`: Site to sums, `(B, F)`.
    """
    totals = filled(batch, sites, 0.0)

    def take(reading: Reading) -> None:
        if see is not None:
            see(reading)
        example, values = chosen(reading, mask)
        total = totals[reading.site]
        total[:, reading.columns] += sum_by_example(values.pow(power), example, len(mask)).to(total)

    read_once(model, batch, sites, take)
    return totals


def token_maxima(model: nn.Module, batch: Any, sites: Mapping[str, Site], mask: Tensor) -> dict[str, Tensor]:
    """
    Largest activations over chosen tokens, from one forward pass.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples of T tokens.
        sites (`Mapping[str, Site]`): The sites to read.
        mask (`torch.Tensor`): Which tokens count, bool, `(B, T)`; at least one of each example.

    Returns:
        `dict[str, torch.Tensor]`: Site to maxima, `(B, F)`; of an expert's neuron, tokens that are not routed to it
        count as 0.
    """
    totals = filled(batch, sites, float("-inf"))
    counts = mask.sum(dim=1, keepdim=True)  # (B, 1)
    unrouted = {name: counts.expand(-1, total.shape[1]).clone() for name, total in totals.items()}

    def take(reading: Reading) -> None:
        example, values = chosen(reading, mask)
        total = totals[reading.site]
        part = values.new_full((len(mask), values.shape[1]), float("-inf"))
        part.scatter_reduce_(0, example.unsqueeze(1).expand_as(values), values, "amax")
        total[:, reading.columns] = total[:, reading.columns].maximum(part.to(total))
        seen = F.one_hot(example, len(mask)).sum(dim=0).unsqueeze(1)  # (B, 1)
        unrouted[reading.site][:, reading.columns] -= seen.to(total.device)

    read_once(model, batch, sites, take)
    return {name: torch.where(unrouted[name] > 0, total.clamp_min(0), total) for name, total in totals.items()}


def routing_counts(model: nn.Module, batch: Any, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """
    How many of each example's real tokens go to each expert: scores of experts that saw few tokens are worth less.

    Args:
        model (`nn.Module`): A causal LM or a `PeftModel`.
        batch (`Batch`): B examples.
        sites (`Mapping[str, Site]`): Sites; those that are no fused experts are left out.

    Returns:
        `dict[str, torch.Tensor]`: Site to counts, int64, `(B, E)`.
    """
    routed = {name: site for name, site in sites.items() if site.kind == "experts"}
    mask = batch.attention_mask.bool()
    sizes, counts = {}, {}
    for name, module in site_modules(model, routed).items():
        base = innermost(module)
        layout = experts_layout(base)
        assert layout is not None  # `site_modules` has seen to it
        experts, sizes[name] = experts_shape(base, layout)
        counts[name] = torch.zeros(len(mask), experts, dtype=torch.long, device=mask.device)

    def take(reading: Reading) -> None:
        example, _ = chosen(reading, mask)
        seen = F.one_hot(example, len(mask)).sum(dim=0)
        counts[reading.site][:, reading.start // sizes[reading.site]] += seen.to(mask.device)

    read_once(model, batch, routed, take)
    return counts


def read_once(model: nn.Module, batch: Any, sites: Mapping[str, Site], take: Take) -> None:
    """Run the model over a batch without gradients while the sites are read; its logits are not needed."""
    with torch.no_grad(), read_neurons(model, sites, take):
        options = call_options(model, batch, logits_to_keep=1)
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)


def filled(batch: Any, sites: Mapping[str, Site], value: float) -> dict[str, Tensor]:
    """Site to a tensor of one value, `(B, F)`, float32."""
    rows, device = batch.input_ids.shape[0], batch.input_ids.device
    return {name: torch.full((rows, site.width), value, device=device) for name, site in sites.items()}


def chosen(reading: Reading, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Examples `(m,)` and activations `(m, I)`, at least float32, of a reading's tokens that a mask `(B, T)` names."""
    kept = mask.flatten().to(reading.tokens.device)[reading.tokens]  # (n,)
    values = reading.values[kept]
    return reading.examples(len(mask))[kept], values.to(torch.promote_types(values.dtype, torch.float32))


def sum_by_example(values: Tensor, example: Tensor, rows: int) -> Tensor:
    """
    Add up values that belong to the same example, always in the same order.

    Args:
        values (`torch.Tensor`): `(n, I)`.
        example (`torch.Tensor`): The example of each, `(n,)`.
        rows (`int`): Number of examples, B.

    Returns:
        `torch.Tensor`: `(B, I)`.
    """
    return F.one_hot(example, rows).T.to(values.dtype) @ values
