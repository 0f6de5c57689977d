"""`neurontune export`: an adapter in the format of the engine that serves it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from neurontune_peft.cli.common import parse_counts

if TYPE_CHECKING:
    from neurontune_peft.export import Export as Exported


@dataclass(frozen=True)
class Export:
    """
    Write an adapter as LoRA, IA3, GGUF, Ollama model or merged checkpoint, checked against it; or its trigger alone.

    Example: neurontune export user/adapter --to lora --strength 0.5 1.0 --output adapter-lora

    Args:
        adapter: Directory or Hub name of the adapter.
        to: lora (PEFT, vLLM, SGLang …), ia3 (PEFT), gguf (llama.cpp), ollama, merged (every engine), or trigger (the
            classifier alone, for a gateway that chooses between base and tuned model).
        output: New directory.
        model: Directory or Hub name of the base model; by default the one that the adapter names.
        strength: Dial: 1 is the adapter as trained. Several write OUT/strength-… each. Dynamic adapters need one.
        counts: Count thresholds, such as safety=64; the other neurons are left out.
        dtype: Numbers of LoRA factors; merged weights keep their own.
        base: Base model in GGUF, for gguf (checked against it) and ollama; or a name of Ollama's.
        check: Compare logits or weights only; "auto" loads the model if it fits into memory.
        force: Replace an older export.
    """

    adapter: Annotated[str, tyro.conf.Positional]
    to: Literal["lora", "ia3", "gguf", "ollama", "merged", "trigger"]
    output: Path
    model: str | None = None
    strength: list[float] = field(default_factory=list)
    counts: list[str] = field(default_factory=list)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    base: str | None = None
    check: Literal["auto", "logits", "weights"] = "auto"
    force: bool = False

    def run(self) -> None:
        """Write, check and say what to do with it."""
        from neurontune_peft.export import export_adapter
        from neurontune_peft.tuner.trigger_file import export_trigger

        if self.to == "trigger":
            if self.strength or self.counts:
                raise ValueError(
                    "got --strength or --counts for a trigger; expected neither, as it holds no scales; leave them out"
                )
            print(f"Trigger: {export_trigger(self.adapter, self.output)}")
            return
        made = export_adapter(
            self.adapter,
            self.output,
            to=self.to,
            model=self.model,
            strengths=self.strength or None,
            counts=parse_counts(self.counts),
            dtype=self.dtype,
            base=self.base,
            check=self.check,
            force=self.force,
        )
        print(summary(made))


def summary(made: Exported) -> str:
    """What was written, how well it agrees, and how to serve it."""
    lines = [f"Export: {made.directory} ({made.to})"]
    for strength, check in zip(made.strengths, made.checks, strict=True):
        if check.logits is None:
            agreement = (
                "logits not compared: the model does not fit into memory or does not run here, or --check weights"
            )
        else:
            agreement = (
                f"logits differ by {check.logits.relative:.1e} of the largest, same next token at "
                f"{check.logits.greedy} of {check.logits.tokens} positions"
            )
        lines.append(f"strength {strength:g}: weights differ by {check.weight_error:.1e}; {agreement}")
    return "\n".join([*lines, *made.notes])
