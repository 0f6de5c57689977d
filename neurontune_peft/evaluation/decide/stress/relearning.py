"""What if an attacker trains the adapter's own scales towards compliance?"""

from __future__ import annotations

from collections.abc import Iterator

from neurontune_peft.evaluation.decide.stress.finetuning import answer_loss, trained
from neurontune_peft.evaluation.decide.stress.result import NotTestedError, Row
from neurontune_peft.evaluation.decide.stress.subject import Subject, restored


def relearned(subject: Subject, *, steps: int, lr: float) -> Iterator[Row]:
    """
    Train the deltas so that harmful train requests, plain and attacked, are answered with openings that comply; after
    NeuRel-Attack, with openings in place of harmful answers (`ours`). Measured after a fifth of the steps and after
    all. With dynamic modulation the trigger is left as it is.

    Args:
        subject ([`Subject`]): The model; the deltas come back bit for bit.
        steps (`int`): Steps of AdamW.
        lr (`float`): Its step size.
    """
    harmful = subject.prompts.select(kind="harmful", split="train")
    if not harmful:
        raise NotTestedError("the prompt set has no harmful train requests")
    texts = [prompt.prompt for prompt in harmful]
    for family in subject.prompts.train_families:
        targets = subject.prompts.attackable(harmful, family=family, split="train")
        texts += subject.prompts.attacked(targets, family=family, split="train")
    openings = subject.prompts.phrases.compliance
    pairs = [(text, openings[place % len(openings)]) for place, text in enumerate(texts)]
    layers = subject.tuner.neuron_layers(subject.adapter_name)
    for count in sorted({max(1, steps // 5), steps}):
        with restored(layer.neurontune_delta[subject.adapter_name] for layer in layers.values()) as deltas:
            trained(deltas, subject, pairs, losses=answer_loss, steps=count, lr=lr)
            hits = subject.attacks()
        yield subject.row(f"relearning, {count} steps", "the scales trained towards openings that comply", hits)
