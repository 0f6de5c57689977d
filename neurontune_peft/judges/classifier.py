"""Any sequence-classification model as a judge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from neurontune_peft.judges.verdict import LABELS, Verdict, unscored

# Words in the label names of published classifiers, first match first.
_MEANINGS = (
    ("partial", "partial"),
    ("incoherent", "incoherent"),
    ("gibberish", "incoherent"),
    ("unscored", "unscored"),
    ("non-refusal", "compliance"),
    ("non_refusal", "compliance"),
    ("no_refusal", "compliance"),
    ("not_refusal", "compliance"),
    ("refus", "refusal"),
    ("reject", "refusal"),
    ("declin", "refusal"),
    ("compl", "compliance"),
    ("normal", "compliance"),
    ("accept", "compliance"),
    ("answer", "compliance"),
)


class ClassifierJudge:
    """
    A judge around a sequence-classification model, such as a refusal classifier from the Hub.

    Args:
        model (`nn.Module`): A model with a classification head.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        labels (`Mapping[str, str]`, *optional*): Its label names to `"refusal"`, `"partial"`, `"compliance"`,
            `"incoherent"` or `"unscored"`. Left out, they are read out of names such as `REJECTION` and `NORMAL`.
        pair (`bool`, *optional*, defaults to `False`): Whether the model reads request and answer, instead of the
            answer alone.
        name (`str`, *optional*): What tables call this judge.

    Raises:
        ValueError: a label of the model has no meaning, or a label is given that the model does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        labels: Mapping[str, str] | None = None,
        pair: bool = False,
        name: str | None = None,
    ) -> None:
        config: Any = model.config
        names = {int(index): str(label) for index, label in config.id2label.items()}
        self.meanings = _meanings(names, labels)
        self.model, self.tokenizer, self.pair = model.eval(), tokenizer, pair
        self.name = name or f"classifier {str(config.name_or_path).rstrip('/').rpartition('/')[2]}".strip()
        self.limits = "A trained classifier; it judges as the data that it was trained on."

    @classmethod
    def from_pretrained(
        cls, name: str, *, labels: Mapping[str, str] | None = None, pair: bool = False, device: str | None = None
    ) -> ClassifierJudge:
        """
        Load a model of transformers.

        Args:
            name (`str`): Directory or Hub name.
            labels (`Mapping[str, str]`, *optional*): As in the class.
            pair (`bool`, *optional*, defaults to `False`): As in the class.
            device (`str`, *optional*): Where to compute; by default a GPU when there is one.

        Returns:
            [`ClassifierJudge`]: The judge.

        Raises:
            OSError: there is no such model.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = AutoModelForSequenceClassification.from_pretrained(name).to(device)
        return cls(model, AutoTokenizer.from_pretrained(name), labels=labels, pair=pair)

    @torch.no_grad()
    def __call__(self, prompt: str, answer: str) -> Verdict:
        """
        Judge an answer.

        Args:
            prompt (`str`): The request; read by models of pairs only.
            answer (`str`): The model's answer.

        Returns:
            `Verdict`: The meaning of the most probable label, with the probability of all labels of that meaning.
        """
        if not answer.strip():
            return Verdict("incoherent", 1.0, "empty")
        texts = (prompt, answer) if self.pair else (answer,)
        length = min(self.tokenizer.model_max_length, 4096)  # tokenizers without a limit say 10^30
        inputs = self.tokenizer(*texts, return_tensors="pt", truncation=True, max_length=length)
        logits = self.model(**inputs.to(next(self.model.parameters()).device)).logits[0].float()  # (L,)
        if not torch.isfinite(logits).all():
            return unscored("the classifier gave numbers that are not finite")
        shares = torch.sigmoid(torch.stack([-logits[0], logits[0]])) if len(logits) == 1 else logits.softmax(dim=-1)
        best = int(shares.argmax())
        meaning = self.meanings[best]
        confidence = sum(float(share) for i, share in enumerate(shares) if self.meanings[i] == meaning)
        return Verdict(meaning, min(1.0, confidence), f"label {best}, {float(shares[best]):.2f}")  # type: ignore[arg-type]


def _meanings(names: Mapping[int, str], labels: Mapping[str, str] | None) -> dict[int, str]:
    """Label index to the verdict it stands for."""
    if labels is not None:
        unknown = sorted(set(labels) - set(names.values())) + sorted(set(labels.values()) - set(LABELS))
        missing = [name for name in names.values() if name not in labels]
        if unknown or missing:
            raise ValueError(
                f"got labels {dict(labels)}; expected each of {list(names.values())} with one of {list(LABELS)}; "
                f"correct {(unknown or missing)[0]!r}"
            )
        return {index: labels[name] for index, name in names.items()}
    found = {
        index: next((meaning for word, meaning in _MEANINGS if word in name.lower().replace(" ", "_")), None)
        for index, name in names.items()
    }
    if None in found.values() or len(set(found.values())) < 2:
        raise ValueError(
            f"got a classifier with the labels {list(names.values())}; expected names that say which is a refusal; "
            f"pass labels={{name: one of {list(LABELS)}}}"
        )
    return {index: str(meaning) for index, meaning in found.items()}
