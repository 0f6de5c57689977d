"""All passes of one call of `attribute`, one after the other, so that an interrupted run goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from neurontune_peft.attribution.accumulate import Checkpoint, Keep, Moments, Pass, processes
from neurontune_peft.attribution.diagnose import openings, warn_if_nothing_is_refused
from neurontune_peft.attribution.engine import Method, base_of, input_device
from neurontune_peft.attribution.plan import (
    MethodOptions,
    Plan,
    function_name,
    make_plan,
    pooled_score,
    shortlist_of,
)
from neurontune_peft.attribution.rows import Rows, tokenize, warn_of_shortened
from neurontune_peft.attribution.stream import Stream, first_batch_size
from neurontune_peft.attribution.tasks import CheckedObjective, Task
from neurontune_peft.neurons import Site
from neurontune_peft.prompts.answers import context_length
from neurontune_peft.prompts.chat import read_template
from neurontune_peft.tuner.fingerprint import fingerprint

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Job:
    """
    What is scored, with what.

    Args:
        model (`nn.Module`): The model, held still.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        plan ([`Plan`]): The method.
        tasks (`Mapping[str, Task]`): Role to what it is scored on.
        sites (`Mapping[str, Site]`): The sites to score.
        batch_size (`int` or `"auto"`): Prompts per batch.
        chat_template (`str`, *optional*): Replaces the tokenizer's own.
        max_length (`int`, *optional*): Most tokens of a row.
    """

    model: nn.Module
    tokenizer: Any
    plan: Plan
    tasks: Mapping[str, Task]
    sites: Mapping[str, Site]
    batch_size: int | str
    chat_template: str | None
    max_length: int | None

    @property
    def device(self) -> torch.device:
        """`torch.device`: Where the batches go."""
        return input_device(self.model)

    @property
    def context(self) -> int | None:
        """`int`, *optional*: Most tokens of a row."""
        base = base_of(self.model)
        return self.max_length or (context_length(base) if isinstance(base, PreTrainedModel) else None)

    def identity(self) -> dict[str, Any]:
        """What the scores depend on, beside the options of methods and prompts, as JSON values."""
        texts = {role: [astuple(example) for example in task.examples] for role, task in self.tasks.items()}
        return {
            "method": self.plan.name,
            "roles": list(self.tasks),
            "objectives": {role: _objective_name(task) for role, task in self.tasks.items()},
            "batch_size": self.batch_size,
            "chat_template": read_template(self.chat_template) or getattr(self.tokenizer, "chat_template", None),
            "max_length": self.context,
            "sites": {name: site.width for name, site in self.sites.items()},
            "model": weights_of(self.model),
            "dtype": str(next(self.model.parameters()).dtype),
            "examples": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        }

    def run(self, checkpoint: Checkpoint | None) -> dict[str, dict[str, Moments]]:
        """
        Score all roles.

        Args:
            checkpoint ([`Checkpoint`], *optional*): Where the state is kept after each batch.

        Returns:
            `dict[str, dict[str, Moments]]`: Role to group to what was kept of its scores, over all processes.

        Raises:
            ValueError: As [`attribute`] raises it.
            KeyboardInterrupt: On Ctrl-C, with a message that says how to go on.
        """
        first_batch_size(self.batch_size, self.device)
        state = {} if checkpoint is None else checkpoint.load()
        rows = {role: self._tokenized(task) for role, task in self.tasks.items()}
        main = processes()[0] == 0
        if state and main:
            logger.warning("going on from checkpoint %s", checkpoint.path if checkpoint else "")
        elif main:
            warn_of_shortened(list(rows.values()), self.context)
            self._look_at_refusals(rows)
        save: Callable[[], None] = (lambda: None) if checkpoint is None else partial(checkpoint.save, state)
        with _resumable(checkpoint, state):
            groups = {role: self._role(task, rows[role], state, save) for role, task in self.tasks.items()}
        if checkpoint is not None:
            checkpoint.remove()
        return groups

    def _tokenized(self, task: Task) -> Rows:
        return tokenize(
            task, self.tokenizer, pairs=self.plan.pairs, context=self.context, chat_template=self.chat_template
        )

    def _role(self, task: Task, rows: Rows, state: dict[str, Pass], save: Callable[[], None]) -> dict[str, Moments]:
        """The passes of one role."""
        method = self.plan.method(task.role)
        if self.plan.shortlist is not None:
            gradient = make_plan("gradient", MethodOptions())
            state_of = partial(self._pass, f"{task.role} shortlist", gradient.method(task.role), gradient.keep)
            scores = pooled_score(gradient, task, state_of(task, rows, state, save))
            method = partial(method, shortlist=shortlist_of(scores, self.plan.shortlist))
        found = self._pass(task.role, method, self.plan.keep, task, rows, state, save)
        self._check_not_zero(task, found)
        return found

    def _pass(
        self,
        name: str,
        method: Method,
        keep: Keep,
        task: Task,
        rows: Rows,
        state: dict[str, Pass],
        save: Callable[[], None],
    ) -> dict[str, Moments]:
        """One method over the prompts of one role, from where the state says."""
        if name not in state:
            widths = {site: found.width for site, found in self.sites.items()}
            groups = {group: Moments.zeros(widths, size=size, keep=keep) for group, size in task.sizes.items()}
            state[name] = Pass(groups, batch_size=first_batch_size(self.batch_size, self.device))
        stream = Stream(task.role, rows, self.sites, method, task.objective, shrink=self.batch_size == "auto")
        stream.run(self.model, state[name], self.device, save)
        return state[name].reduced(self.device)

    def _check_not_zero(self, task: Task, groups: Mapping[str, Moments]) -> None:
        if any(bool(total.any()) for moments in groups.values() for total in moments.total.values()):
            return
        if not self.plan.objective:
            raise ValueError(
                f"got scores of zero at every neuron for role '{task.role}' (method {self.plan.name}); expected "
                "activations that say something; compare with another model, or score other sites"
            )
        begun = openings(self.model, self.tokenizer, task, chat_template=self.chat_template)
        raise ValueError(
            f"got a gradient of zero at every neuron for role '{task.role}' (method {self.plan.name}); expected an "
            "objective that depends on the neurons; make the phrases and the chat template of the prompt set match "
            f"the model, whose own answers begin with {begun or 'text that cannot be shown'}"
        )

    def _look_at_refusals(self, rows: Mapping[str, Rows]) -> None:
        if "safety" in rows and self.plan.objective:
            warn_if_nothing_is_refused(
                self.model,
                self.tokenizer,
                self.tasks["safety"],
                rows["safety"],
                self.device,
                chat_template=self.chat_template,
            )


def weights_of(model: nn.Module) -> str:
    """A fingerprint of all weights of a model; the same for one that cannot be read."""
    return fingerprint(dict(model.named_parameters())) or "unknown"


def _objective_name(task: Task) -> str:
    objective = task.objective
    return function_name(objective.inner if isinstance(objective, CheckedObjective) else type(objective))


@contextmanager
def _resumable(checkpoint: Checkpoint | None, state: Mapping[str, Pass]) -> Iterator[None]:
    """On Ctrl-C, say how to go on. The state was written after the last whole batch, so nothing is left to save."""
    try:
        yield
    except KeyboardInterrupt:
        done = sum(part.position for part in state.values())
        if checkpoint is None or not checkpoint.path.exists():
            advice = "nothing was kept; pass checkpoint=PATH to be able to go on from where a run stopped"
        else:
            advice = f"the state is in {checkpoint.path}; make the same call again to go on from there"
        logger.warning("Stopped after %d prompts: %s.", done, advice)
        raise KeyboardInterrupt(f"stopped after {done} prompts: {advice}") from None
