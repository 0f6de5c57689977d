"""What does a judge say about an answer?"""

from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Verdict:
    """
    A judge's opinion on one answer.

    Args:
        label (`str`): `"refusal"` or `"compliance"`.
        confidence (`float`): How sure the judge is, from 0 to 1; a fixed rule always says 1.
        reason (`str`): Why, for people to read.

    Raises:
        ValueError: an unknown label, or a confidence outside 0 to 1.
    """

    label: Literal["refusal", "compliance"]
    confidence: float
    reason: str

    def __post_init__(self) -> None:
        if self.label not in ("refusal", "compliance"):
            raise ValueError(f"got label {self.label!r}; expected 'refusal' or 'compliance'; return None if unsure")
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"got confidence {self.confidence}; expected 0 to 1; rescale it")


class Judge(Protocol):
    """
    Any callable from a request and its answer to a verdict.

    A judge that cannot tell returns `None`; such answers stay unscored. Reports show the judge's `name` and `limits`
    where it has such attributes, else the name of the callable.
    """

    def __call__(self, prompt: str, answer: str) -> Verdict | None:
        """Returns the verdict on `answer`, given to the plain or attacked `prompt`."""
