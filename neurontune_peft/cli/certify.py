"""`neurontune certify`: how strongly may an adapter act, and how sure is that?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from neurontune_peft.cli.adapters import AdapterOptions, check_local, write_presets
from neurontune_peft.cli.calls import CheckFailed

if TYPE_CHECKING:
    from neurontune_peft.evaluation.decide.certify import Certificate


@dataclass(frozen=True)
class Certify(AdapterOptions):
    """
    Find the strongest setting whose limits hold with a stated confidence. Exit code 1 when none does.

    Limits: over_refusal, benign_refusal, wrapped_benign_refusal; with new_ in front, only requests count that the base
    model does not refuse.

    Example: neurontune certify user/chat-model --adapter adapter --limit new_benign_refusal=0.05 --output c.json

    Args:
        limit: Limit and bound, such as benign_refusal=0.05; several may be given.
        confidence: With what confidence all limits hold at once.
        dial: The dial to turn; by default the trigger's threshold where there is one, else the strength.
        tuned_on: Directory of the prompt set that the adapter was tuned on, where it is another one.
        output: JSON file for the certificate.
        write: Write the setting into the adapter's configuration, as the preset certified.
    """

    limit: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    confidence: float = 0.95
    dial: Literal["strength", "counts", "threshold"] | None = None
    tuned_on: str | None = None
    output: Path | None = field(default=None, kw_only=True)
    write: bool = False

    def run(self) -> Certificate:
        """
        Certify, save and print.

        Raises:
            CheckFailed: When no setting can be certified; the certificate, which says what it would take,
                is written all the same.
        """
        from neurontune_peft.evaluation.decide.certify import LIMITS, certify, check_known_source
        from neurontune_peft.evaluation.decide.testing import check_limits
        from neurontune_peft.prompts import PromptSet

        limits = parse_limits(self.limit) or {"over_refusal": 0.05}
        check_limits(limits, LIMITS, self.confidence)
        if self.write:
            check_local(self.adapter)
        prompts = PromptSet.load(self.prompts)
        tuned_on = None if self.tuned_on is None else PromptSet.load(self.tuned_on)
        tuned, tokenizer = self.load_tuned()
        config: Any = tuned.peft_config["default"]
        if tuned_on is None and PromptSet.load().fingerprint == (config.provenance or {}).get("prompt_set"):
            tuned_on = PromptSet.load()  # the shipped set, as it was when the adapter was made
        check_known_source(config, prompts, tuned_on)
        certificate = certify(
            tuned,
            prompts,
            limits,
            confidence=self.confidence,
            tokenizer=tokenizer,
            dial=self.dial,
            tuned_on=tuned_on,
            **self.measuring(),
        )
        if self.output is not None:
            certificate.save(self.output)
        print(certificate)
        if certificate.setting is None:
            raise CheckFailed(certificate)
        if self.write:
            write_presets(self.adapter, {"certified": certificate.preset()})
            print(f"Preset: certified, in {self.adapter}")
        return certificate


def parse_limits(words: Sequence[str]) -> dict[str, float]:
    """
    Read limits such as `over_refusal=0.05`.

    Raises:
        ValueError: Shows the word that is no limit.
    """
    limits = {}
    for word in words:
        name, _, bound = word.partition("=")
        try:
            limits[name] = float(bound)
        except ValueError:
            raise ValueError(f"got limit '{word}'; expected NAME=SHARE; write for example over_refusal=0.05") from None
    return limits
