"""One pass of a method over the prompts of a role: batch by batch, checked, halved where memory ends, saved."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from transformers.utils import logging

from neurontune_peft.attribution.accumulate import Pass, processes
from neurontune_peft.attribution.engine import Method
from neurontune_peft.attribution.rows import Rows
from neurontune_peft.attribution.tasks import Example
from neurontune_peft.neurons import Site
from neurontune_peft.objectives import Objective

logger = logging.get_logger(__name__)

# `ours`: a CPU gains nothing from larger batches, and kills a process that asks for too much instead of raising.
CPU_BATCH, FIRST_BATCH = 8, 256


@dataclass(frozen=True)
class Stream:
    """
    What one pass works on.

    Args:
        role (`str`): Named in messages and beside the progress bar.
        rows ([`Rows`]): The prompts.
        sites (`Mapping[str, Site]`): The sites to score.
        method (`Callable`): `(model, batch, sites, objective) -> {site: (B, F)}`.
        objective (`Callable`): `(model, batch) -> (B,)`.
        shrink (`bool`): Whether a batch that does not fit is halved.
    """

    role: str
    rows: Rows
    sites: Mapping[str, Site]
    method: Method
    objective: Objective
    shrink: bool

    def run(self, model: nn.Module, state: Pass, device: torch.device, save: Callable[[], None]) -> None:
        """
        Score this process's share of the prompts that are left.

        Args:
            model (`nn.Module`): The model, held still.
            state ([`Pass`]): Where the pass stands; updated after each batch.
            device (`torch.device`): Where the batches go.
            save (`Callable`): Called after each batch.
        """
        rank, world = processes()
        share = range(rank, len(self.rows.examples), world)
        places = places_in_groups(self.rows.examples)
        total = len(share)
        with logging.tqdm(
            total=total, initial=state.position, desc=f"attribute {self.role}", unit="prompt", disable=rank > 0
        ) as bar:
            while state.position < total:
                part = share[state.position : state.position + state.batch_size]
                scores = self._scored(model, part, device)
                if scores is None:
                    state.batch_size = max(1, len(part) // 2)
                    clear_device_cache(garbage_collection=True)
                    logger.warning("%d prompts do not fit into memory; going on with %d", len(part), state.batch_size)
                    continue
                self._add(state, part, places, scores)
                state.position += len(part)
                save()
                bar.update(len(part))

    def _scored(self, model: nn.Module, part: Sequence[int], device: torch.device) -> dict[str, Tensor] | None:
        """The checked scores of a batch, or `None` when it does not fit; nothing of it is held afterwards."""
        batch = self.rows.batch(part, device)
        try:
            scores = self.method(model, batch, self.sites, self.objective)
        except RuntimeError as error:
            if "does not require grad" in str(error):
                raise ValueError(
                    f"got an objective for role '{self.role}' that does not depend on the model; expected a function "
                    "of the model's output, computed with gradients; remove .detach() and torch.no_grad()"
                ) from error
            if not (self.shrink and len(part) > 1 and should_reduce_batch_size(error)):
                raise
            return None
        check_result(self.role, [self.rows.examples[i].id for i in part], self.sites, scores)
        return scores

    def _add(self, state: Pass, part: Sequence[int], places: Sequence[int], scores: Mapping[str, Tensor]) -> None:
        rows: dict[str, list[int]] = {}
        for row, i in enumerate(part):
            rows.setdefault(self.rows.examples[i].group, []).append(row)
        for group, own in rows.items():
            mine = {site: score[own] for site, score in scores.items()}
            state.groups[group].add([places[part[row]] for row in own], mine)


def places_in_groups(examples: Sequence[Example]) -> list[int]:
    """Place of each example among those of its group."""
    seen: dict[str, int] = {}
    places = []
    for example in examples:
        places.append(seen.get(example.group, 0))
        seen[example.group] = places[-1] + 1
    return places


def first_batch_size(batch_size: int | str, device: torch.device) -> int:
    """
    Prompts of the first batch.

    Raises:
        ValueError: When the option is neither a positive number nor `"auto"`.
    """
    if batch_size == "auto":
        return CPU_BATCH if device.type == "cpu" else FIRST_BATCH
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"got batch_size={batch_size!r}; expected a positive number or 'auto'; use batch_size='auto'")
    return batch_size


def check_result(role: str, ids: Sequence[str], sites: Mapping[str, Site], part: Mapping[str, Any]) -> None:
    """
    Refuse what a method may not return: other sites or shapes than asked for, NaN and infinite scores.

    Raises:
        ValueError: Names the site, and the prompt where there is one.
    """
    shapes = {site: tuple(score.shape) for site, score in part.items()}
    expected = {name: (len(ids), site.width) for name, site in sites.items()}
    if shapes != expected:
        wrong = next(iter(set(shapes.items()) ^ set(expected.items())))[0]
        raise ValueError(
            f"got scores of shape {shapes.get(wrong)} at '{wrong}' from the method; expected {expected.get(wrong)}, a "
            "row per prompt at every site; correct the method"
        )
    for site, score in part.items():
        finite = torch.isfinite(score).all(dim=1)
        if not finite.all():
            prompt = ids[int((~finite).nonzero()[0])]
            raise ValueError(
                f"got a NaN or infinite score for role '{role}' at '{site}' on prompt '{prompt}'; expected finite "
                "numbers; load the model in float32 or bfloat16, or remove the prompt"
            )
