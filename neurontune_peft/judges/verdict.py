"""What does a judge say about an answer?"""

from dataclasses import dataclass
from typing import Literal, Protocol, get_args

Label = Literal["refusal", "partial", "compliance", "incoherent", "unscored"]
LABELS: tuple[str, ...] = get_args(Label)


@dataclass(frozen=True)
class Verdict:
    """
    A judge's opinion on one answer.

    Args:
        label (`str`): `"refusal"`; `"partial"` (refuses and gives something all the same, or refuses a part);
            `"compliance"`; `"incoherent"` (empty, repetitive or garbled text that refuses nothing); or `"unscored"`
            where the judge could not tell.
        confidence (`float`): How sure the judge is, from 0 to 1.
        reason (`str`): Why, for people to read.

    Raises:
        ValueError: an unknown label, or a confidence outside 0 to 1.
    """

    label: Label
    confidence: float
    reason: str

    def __post_init__(self) -> None:
        if self.label not in LABELS:
            raise ValueError(f"got label {self.label!r}; expected one of {list(LABELS)}; return 'unscored' if unsure")
        if not 0.0 <= self.confidence <= 1.0:
            raise ValueError(f"got confidence {self.confidence}; expected 0 to 1; rescale it")


class Judge(Protocol):
    """
    Any callable from a request and its answer to a verdict.

    A judge that cannot tell returns `None` or the label `"unscored"`; such answers count in no rate. Reports show the
    judge's `name` and `limits` where it has such attributes, else the name of the callable.
    """

    def __call__(self, prompt: str, answer: str) -> Verdict | None:
        """Returns the verdict on `answer`, given to the plain or attacked `prompt`."""


def unscored(reason: str) -> Verdict:
    """
    The verdict of a judge that could not tell.

    Args:
        reason (`str`): Why not.
    """
    return Verdict("unscored", 0.0, reason)


def ask(judge: Judge, prompt: str, answer: str) -> Verdict:
    """
    Ask a judge; whatever goes wrong inside it leaves the answer unscored, with the reason.

    Args:
        judge (`Callable`): The judge.
        prompt (`str`): The request.
        answer (`str`): The answer.

    Returns:
        `Verdict`: Its verdict, or one with the label `"unscored"`.
    """
    try:
        verdict = judge(prompt, answer)
    except Exception as error:  # a judge is foreign code, and one answer that it chokes on must not end a long run
        return unscored(f"the judge raised {type(error).__name__}: {error}"[:300])
    if verdict is None:
        return unscored("the judge could not tell")
    if not isinstance(verdict, Verdict):
        return unscored(f"the judge returned {verdict!r}"[:200] + "; expected a Verdict")
    return verdict


def judge_name(judge: Judge) -> str:
    """
    What reports call a judge.

    Args:
        judge (`Callable`): The judge.

    Returns:
        `str`: Its `name`, else the name of the function or class.
    """
    for owner, attribute in ((judge, "name"), (judge, "__name__"), (type(judge), "__name__")):
        if isinstance(name := getattr(owner, attribute, None), str):
            return name
    raise AssertionError("every class has a name")
