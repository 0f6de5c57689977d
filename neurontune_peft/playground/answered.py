"""What a chat shows of one request: both answers, the trigger's value, and the neurons that fired."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass


@dataclass(frozen=True)
class TriggerState:
    """
    What the trigger said about a request.

    Args:
        score (`float`): Its value.
        threshold (`float`): Values above it trigger.
        strength (`float`): The strength that was decided on, before the dial.
    """

    score: float
    threshold: float
    strength: float

    @property
    def fired(self) -> bool:
        """`bool`: Whether the request triggered."""
        return self.score > self.threshold

    def __str__(self) -> str:
        side = "above" if self.fired else "below"
        return f"{self.score:.3f}, {side} its threshold of {self.threshold:.3f}: strength {self.strength:g}"


@dataclass(frozen=True)
class Fired:
    """
    A neuron of the adapter at the end of a request.

    Args:
        site (`str`): The site.
        index (`int`): Its index there.
        role (`str`): Its role.
        activation (`float`): Its activation in the base model.
        scale (`float`): Its scale with the dials as they stand.
    """

    site: str
    index: int
    role: str
    activation: float
    scale: float

    @property
    def change(self) -> float:
        """`float`: What scaling adds to the activation, if the request is scaled."""
        return self.activation * (self.scale - 1)


@dataclass(frozen=True)
class Answered:
    """
    Both answers to a request.

    Args:
        prompt (`str`): The text that was put to the models, inside its attack.
        base (`str`): The base model's answer.
        tuned (`str`): The tuned model's answer.
        trigger ([`TriggerState`], *optional*): What the trigger said; `None` for static modulation.
        neurons (`tuple[Fired, ...]`): The adapter's neurons, those that scaling changes most first.
    """

    prompt: str
    base: str
    tuned: str
    trigger: TriggerState | None
    neurons: tuple[Fired, ...]

    @property
    def by_site(self) -> dict[str, float]:
        """`dict[str, float]`: Site to the sum of the changes' sizes, in the model's order."""
        sums: dict[str, float] = defaultdict(float)
        for neuron in sorted(self.neurons, key=lambda neuron: _natural(neuron.site)):
            sums[neuron.site] += abs(neuron.change)
        return dict(sums)


def _natural(site: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in site.split(".")]
