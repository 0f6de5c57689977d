"""What was certified, on how many prompts, and what would it take where nothing was?"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from neurontune_peft.checks import write_atomically
from neurontune_peft.evaluation.decide.testing import Tested, needed
from neurontune_peft.prompts import PromptSet
from neurontune_peft.tuner.presets import Setting


@dataclass(frozen=True)
class Certificate:
    """
    The strongest setting whose limits are shown to hold.

    Args:
        setting ([`Setting`], *optional*): The setting; `None` when none can be certified.
        confidence (`float`): With what confidence all limits hold at once.
        limits (`Mapping[str, float]`): Limit to its bound.
        tested (`tuple[tuple[Setting, Tested], ...]`): The settings that were tested, in order; only the last may have
            failed.
        needed (`Mapping[str, int | None]`): Limit to how many prompts it takes at least, if none of them violates it.
        needed_at_observed (`Mapping[str, int | None]`):
            Limit to about how many prompts it takes at the share of violations that the setting shows which failed;
            `None` where no number suffices, as the share is not below the bound. Empty where none failed.
        judge (`str`): Name of the judge.
        prompt_set (`str`): Fingerprint of the prompt set.
    """

    setting: Setting | None
    confidence: float
    limits: Mapping[str, float]
    tested: tuple[tuple[Setting, Tested], ...]
    needed: Mapping[str, int | None]
    needed_at_observed: Mapping[str, int | None]
    judge: str
    prompt_set: str

    @property
    def n(self) -> dict[str, int]:
        """`dict[str, int]`: Limit to the number of prompts that it was tested on."""
        return {name: count.total for name, count in self.tested[0][1].counts.items()} if self.tested else {}

    @property
    def statement(self) -> str:
        """`str`: What may be said, and what may not."""
        bounds = " and ".join(f"{name} at most {bound:.1%}" for name, bound in self.limits.items())
        sizes = ", ".join(f"{count} for {name}" for name, count in self.n.items())
        if self.setting is not None:
            found = f"With {self.confidence:.0%} confidence, at {self.setting}: {bounds}. Prompts: {sizes}."
        else:
            least = ", ".join(_numbers(name, self) for name in self.limits)
            found = f"No setting can be certified for {bounds} at {self.confidence:.0%} confidence. {least}."
        return (
            f"{found} Valid for requests drawn like the test prompts, answered greedily and judged by '{self.judge}'. "
            "Nothing is promised for new kinds of requests, other languages, another judge, or the success of attacks."
        )

    def as_dict(self) -> dict[str, Any]:
        """The certificate as JSON values."""
        return {
            "setting": self.setting and self.setting.as_dict(),
            "confidence": self.confidence,
            "limits": dict(self.limits),
            "p_values": [result.p for _, result in self.tested],
            "n": self.n,
            "needed": dict(self.needed),
            "needed_at_observed": dict(self.needed_at_observed),
            "tested": [
                setting.as_dict()
                | {
                    "p": result.p,
                    "held": result.held,
                    "violations": {name: count.violations for name, count in result.counts.items()},
                }
                for setting, result in self.tested
            ],
            "judge": self.judge,
            "prompt_set": self.prompt_set,
            "statement": self.statement,
        }

    def preset(self) -> dict[str, Any]:
        """
        The setting as an adapter's configuration keeps it.

        Raises:
            ValueError: When nothing was certified.
        """
        if self.setting is None:
            raise ValueError(f"got nothing certified; expected a setting; {self.statement}")
        measured = {"limits": dict(self.limits), "confidence": self.confidence, "judge": self.judge}
        return self.setting.as_dict() | {"measured": measured | {"prompt_set": self.prompt_set}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Write the certificate as JSON.

        Args:
            path (`str` or `os.PathLike`): The file.
        """
        write_atomically(path, json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n")

    def __str__(self) -> str:
        names = list(self.limits)
        lines = ["| setting | " + " | ".join(f"{n} ≤ {self.limits[n]:.1%}" for n in names) + " | p | holds |"]
        lines.append("|---" * (len(names) + 3) + "|")
        for setting, result in self.tested:
            cells = [f"{c.violations}/{c.total} ({c.rate:.1%})" for c in (result.counts[name] for name in names)]
            cells = [str(setting), *cells, f"{result.p:.4f}", "yes" if result.held else "not shown"]
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", self.statement])


def made_certificate(
    tested: Sequence[tuple[Setting, Tested]],
    limits: Mapping[str, float],
    *,
    confidence: float,
    judge: str,
    prompts: PromptSet,
) -> Certificate:
    """
    The certificate that follows from tests.

    Args:
        tested (`Sequence[tuple[Setting, Tested]]`): The settings that were tested, in order.
        limits (`Mapping[str, float]`): Limit to its bound.
        confidence (`float`): The confidence.
        judge (`str`): Name of the judge.
        prompts ([`PromptSet`]): The certifying prompts.
    """
    certified = [setting for setting, result in tested if result.held]
    failed = next((result for _, result in tested if not result.held), None)
    observed = {
        name: needed(bound, confidence=confidence, rate=failed.counts[name].rate)
        for name, bound in limits.items()
        if failed is not None
    }
    return Certificate(
        setting=certified[-1] if certified else None,
        confidence=confidence,
        limits=dict(limits),
        tested=tuple(tested),
        needed={name: needed(bound, confidence=confidence) for name, bound in limits.items()},
        needed_at_observed=observed,
        judge=judge,
        prompt_set=prompts.fingerprint,
    )


def _numbers(name: str, certificate: Certificate) -> str:
    """How many prompts a limit takes, in words."""
    least, observed = certificate.needed[name], certificate.needed_at_observed.get(name)
    has = certificate.n[name]
    if name in certificate.needed_at_observed and observed is None:
        then = "no number suffices at the share that the mildest setting shows"
    else:
        then = f"about {observed} at the share that the mildest setting shows"
    return f"{name} takes at least {least} prompts without a violation, {then}; there are {has}"
