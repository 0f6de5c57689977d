"""`neurontune audit`: is an adapter of unknown origin what it says, and does it make its model safer?"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from neurontune_peft.cli.common import ModelOptions

if TYPE_CHECKING:
    from neurontune_peft.hub.audit import Audit as Result
    from neurontune_peft.hub.margin import MarginEffect


_COLOURS = {"danger": "\033[1;31m", "warning": "\033[33m", "ok": "\033[32m", "note": ""}


@dataclass(frozen=True)
class Audit:
    """
    Look at an adapter before you load it: only scales? within bounds? which layers? does it raise or lower refusals?

    Nothing of it is executed. With --model, the refusal margin is measured on the shipped prompts with and without it.
    The exit code is 0 when nothing dangerous was found, 1 when something was, 2 when the call was wrong.

    Example: neurontune audit user/adapter --model user/chat-model

    Args:
        adapter: Directory or Hub name of the adapter.
        revision: Branch, tag or commit on the Hub.
        model: Directory or Hub name of the base model; without it, the effect on refusals is not measured.
        prompts: Directory of a prompt set; the shipped one by default.
        bounds: Lowest and highest scale that is taken for normal.
        n_prompts: Most prompts of each kind.
        batch_size: Prompts at once.
        dtype: Number type of the computation; "auto" is float32 on a CPU and the checkpoint's own elsewhere.
        device: Where to compute; by default a GPU when there is one.
        chat_template: Jinja template, or a file with one, in place of the tokenizer's own.
        json: Print JSON for machines.
    """

    adapter: Annotated[str, tyro.conf.Positional]
    revision: str | None = None
    model: str | None = None
    prompts: str | None = None
    bounds: tuple[float, float] = (0.0, 5.0)
    n_prompts: int = 32
    batch_size: int = 8
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    chat_template: str | None = None
    json: bool = False

    def run(self) -> None:
        """
        Look, measure, print.

        Raises:
            SystemExit: With code 1 when something dangerous was found.
        """
        from neurontune_peft.hub.audit import audit

        found = audit(
            self.adapter,
            revision=self.revision,
            bounds=self.bounds,
            measure=None if self.model is None else self._measure,
        )
        print(json.dumps(found.as_dict(), indent=1) if self.json else as_text(found, colour=_colours()))
        if not found.passed:
            raise SystemExit(1)

    def _measure(self, directory: Path) -> Mapping[str, MarginEffect]:
        from peft import PeftModel

        from neurontune_peft.hub.margin import margin_effects
        from neurontune_peft.prompts import PromptSet

        options: dict[str, Any] = {name: getattr(self, name) for name in ("dtype", "device", "chat_template")}
        model, tokenizer = ModelOptions(model=str(self.model), **options).load()
        tuned = PeftModel.from_pretrained(model, str(directory)).eval()
        return margin_effects(
            tuned,
            tokenizer,
            PromptSet.load(self.prompts),
            n_prompts=self.n_prompts,
            batch_size=self.batch_size,
            chat_template=self.chat_template,
        )


def as_text(found: Result, *, colour: bool) -> str:
    """An audit for people; dangerous findings in red."""
    from neurontune_peft.neurons.text import draw_bars

    lines = [f"Audit of {found.name}", ""]
    for finding in found.findings:
        line = f"{finding.level:<8} {finding.about:<14} {finding.text}"
        lines.append(f"{_COLOURS[finding.level]}{line}\033[0m" if colour and _COLOURS[finding.level] else line)
    for role, sites in found.layers.items():
        lines += ["", f"Neurons of role {role} per site:", draw_bars(sites)]
    verdict = "Nothing dangerous was found." if found.passed else "DANGEROUS: do not load this adapter."
    if found.passed and not found.effects:
        verdict += " Whether it lowers refusals was not measured; --model BASE does."
    lines += ["", f"{_COLOURS['ok' if found.passed else 'danger']}{verdict}\033[0m" if colour else verdict]
    return "\n".join(lines)


def _colours() -> bool:
    """Whether colours are shown: on a terminal, or where FORCE_COLOR asks for them, unless NO_COLOR forbids it."""
    return not os.environ.get("NO_COLOR") and (sys.stdout.isatty() or bool(os.environ.get("FORCE_COLOR")))
