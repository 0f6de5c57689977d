"""Which projection carries a gated MLP's neurons linearly, so that scaling its output rows scales the neurons?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 3
# Powers of two and their negatives multiply without rounding, so a linear factor shows bit for bit; 0 must give 0.
FACTORS = (2.0, -1.0, 0.0)


@dataclass(frozen=True)
class Carrier:
    """
    A linear module whose output row `first + step * i` is a factor of neuron i.

    Args:
        name (`str`): Path of the module in the model.
        first (`int`): Row of neuron 0.
        step (`int`): Rows from one neuron to the next.
    """

    name: str
    first: int
    step: int

    def rows(self, index: Tensor) -> Tensor:
        """Rows of neurons, int64, shape `(k,)`."""
        return self.first + self.step * index


class _Given(nn.Module):
    """Stands for a projection, and gives what it is told to."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Any) -> Tensor:
        return self.output


def find_carrier(model: nn.Module, site: str) -> Carrier | None:
    """
    Find it by the block's own forward pass, with its projections replaced by given outputs: in
    `down(act(gate(x)) * up(x))`, scaling output i of `up` scales neuron i alone and exactly, and that of `gate` does
    not. `ours`; nothing is taken from names.

    Args:
        model (`nn.Module`): The model, which may be on the meta device.
        site (`str`): Path of the MLP's output projection.

    Returns:
        [`Carrier`], *optional*: `None` where neurons have no such factor, as in MLPs without a gate.
    """
    path, _, own = site.rpartition(".")
    block, width = model.get_submodule(path), int(getattr(model.get_submodule(site), "in_features", 0))
    linear = {
        name: module.out_features
        for name, module in block.named_children()
        if name != own and isinstance(module, nn.Linear) and module.out_features in (width, 2 * width)
    }
    inputs = [m.in_features for n, m in block.named_children() if n in linear and isinstance(m, nn.Linear)]
    for name, rows in linear.items():
        for first, step in [(0, 1)] if rows == width else [(0, 1), (width, 1), (0, 2), (1, 2)]:
            index = first + step * torch.arange(width)
            if _is_factor(block, own, linear, name, index, inputs[0]):
                return Carrier(f"{path}.{name}" if path else name, first, step)
    return None


def _is_factor(block: nn.Module, own: str, linear: dict[str, int], name: str, index: Tensor, hidden: int) -> bool:
    """Whether scaling these outputs of a projection scales the block's neurons by the same numbers, bit for bit."""
    generator = torch.Generator().manual_seed(0)
    given = {one: torch.randn(1, ROWS, rows, generator=generator) for one, rows in linear.items()}
    tokens = torch.randn(1, ROWS, hidden, generator=generator)
    run = _runner(block, own, tokens)
    try:
        plain = run(given)
        if plain.shape[-1] != index.numel() or not plain.any():
            return False
        for factors in _factors(index.numel()):
            outputs = given[name].clone()
            outputs[..., index] *= factors
            if not torch.equal(run({**given, name: outputs}), plain * factors):
                return False
    except (AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # the block does something else with its projections, or holds weights of its own
    return True


def _factors(width: int) -> Iterator[Tensor]:
    """All neurons by each factor, and every third one by another, so that each is seen to act on its own."""
    for factor in FACTORS:
        yield torch.full((width,), factor)
    yield torch.tensor([*FACTORS, 1.0])[torch.arange(width) % 4]


def _runner(block: nn.Module, own: str, tokens: Tensor) -> Callable[[dict[str, Tensor]], Tensor]:
    """The block's forward pass up to its output projection, as a function of what its other projections give."""

    def run(given: dict[str, Tensor]) -> Tensor:
        probe = copy.copy(block)
        modules: dict[str, nn.Module | None] = dict(block._modules)
        probe._modules = modules | {name: _Given(output) for name, output in given.items()} | {own: nn.Identity()}
        with torch.no_grad():
            found: Tensor = probe(tokens)
        return found

    return run
