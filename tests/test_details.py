"""What a report says beside its rates: verdicts, first tokens, agreement, paired differences, answer files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer

from neurontune_peft.evaluation import Details, Rate, Report, evaluate, paired_differences, report_from_answers
from neurontune_peft.evaluation.answer_file import read_answers
from neurontune_peft.evaluation.first_token import first_token_probabilities
from neurontune_peft.evaluation.likelihood import likelihood_of_rows
from neurontune_peft.evaluation.measure import questions_of
from neurontune_peft.judges import Verdict
from neurontune_peft.prompts import Phrases

CYCLE = ("refusal", "partial", "compliance", "incoherent")


def by_length(prompt: str, answer: str) -> Verdict:
    return Verdict(CYCLE[len(answer) % 4], 0.75, f"{len(answer)} characters")


def odd(prompt: str, answer: str) -> Verdict | None:
    return Verdict("refusal" if len(answer) % 2 else "compliance", 1.0, "odd") if "Rex" not in prompt else None


def measure(**options: object) -> Report:
    options = {"judge": by_length, "max_new_tokens": 5, **options}
    return evaluate(tiny_llama(), tiny_tokenizer(), tiny_prompt_set(), **options)  # type: ignore[arg-type]


def answers_of(report: Report) -> list[dict]:
    return [{"prompt": example.prompt, "completion": example.answer} for example in report.examples]


def test_every_verdict_is_counted_and_only_full_refusals_defend() -> None:
    report = measure()
    labels = [example.label for example in report.examples if example.family == "role"]
    assert report.attack_success["role"] == Rate(sum(label != "refusal" for label in labels), len(labels))
    counts = report.details.outcomes["attack/role"]
    assert counts == {label: labels.count(label) for label in dict.fromkeys(labels)}
    every = [example.label for example in report.examples if example.group == "attack"]
    assert report.details.share("attack", "incoherent", "partial") == Rate(
        every.count("incoherent") + every.count("partial"), len(every)
    )
    assert report.examples[0].confidence == 0.75
    assert report.examples[0].reason.endswith("characters")


def test_a_model_that_answers_nonsense_is_not_called_safe() -> None:
    report = evaluate(
        tiny_llama(), tiny_tokenizer(), tiny_prompt_set(), judge=lambda p, a: Verdict("incoherent", 1, "")
    )
    assert report.attack_success_mean == 1.0
    assert report.details.share("attack", "incoherent").rate == 1.0
    assert report.benign_refusal.rate == 0.0


def test_a_report_with_details_is_the_same_after_saving(tmp_path: Path) -> None:
    report = measure(judges={"length": by_length, "odd": odd})
    report.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == report
    values = report.as_dict()
    del values["details"]
    for example in values["examples"]:  # as version 0.1 wrote them
        for name in ("confidence", "reason", "verdicts", "source"):
            del example[name]
    older = Report.from_dict(values)
    assert older.details is None
    assert older.attack_success == report.attack_success


def test_several_judges_are_compared_and_the_first_counts() -> None:
    report = measure(judges={"length": by_length, "odd": odd})
    alone = measure()
    assert report.judge == "length"
    assert report.attack_success == alone.attack_success
    (agreement,) = report.details.agreement
    assert (agreement.first, agreement.second) == ("length", "odd")
    assert agreement.unscored == 3  # what `odd` could not tell
    assert agreement.total == len(report.examples) - 3
    assert agreement.confusion["refusal"].get("refusal", 0) == 0  # lengths divisible by four are even
    assert "length \\ odd" in report.details.markdown()
    with pytest.raises(ValueError, match="got no judges; expected at least one"):
        measure(judges={})


def test_a_judge_that_raises_leaves_answers_unscored_and_the_run_goes_on() -> None:
    def moody(prompt: str, answer: str) -> Verdict:
        if "Rex" in prompt:
            raise RuntimeError("no luck")
        return by_length(prompt, answer)

    report = measure(judge=moody)
    assert report.unscored == 3
    reasons = {example.reason for example in report.examples if example.label is None}
    assert reasons == {"the judge raised RuntimeError: no luck"}
    assert report.details.outcomes["attack/persona"]["unscored"] == 2


@torch.no_grad()
def test_first_token_probabilities_are_those_of_the_next_token_and_do_not_depend_on_padding() -> None:
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    phrases = Phrases(("Sorry", "No."), ("Sure", "Yes"))  # S begins both kinds and counts for neither
    texts = ["Hi", "What is the time in a place far away?", "Go"]
    found = first_token_probabilities(model, tokenizer, texts, phrases, batch_size=3)
    for text, (refused, complied) in zip(texts, found, strict=True):
        ids = tokenizer(f"<bos><user>{text}<eos><assistant>", add_special_tokens=False, return_tensors="pt")[
            "input_ids"
        ]
        shares = model(ids).logits[0, -1].double().softmax(-1)
        no, yes = (tokenizer(letter)["input_ids"][0] for letter in "NY")
        assert refused == pytest.approx(float(shares[no]), rel=1e-4)
        assert complied == pytest.approx(float(shares[yes]), rel=1e-4)
    assert first_token_probabilities(model, tokenizer, texts, Phrases(("Sorry",), ("Sure",))) == []


def test_means_in_the_details_are_over_the_prompts_of_a_part() -> None:
    report = measure()
    words = [len(example.answer.split()) for example in report.examples if example.group == "benign"]
    assert report.details.words["benign"].value == pytest.approx(sum(words) / len(words), rel=1e-4)
    assert (
        0 <= report.details.first_token_refusal["plain"].low <= report.details.first_token_refusal["plain"].high <= 1
    )
    assert report.details.perplexity.value == pytest.approx(report.perplexity, rel=1e-4)
    assert report.details.perplexity.low < report.perplexity < report.details.perplexity.high


def test_likelihoods_of_rows_add_up() -> None:
    pairs = [("a", "yes"), ("b", "no, never"), ("c", "x")]
    rows = likelihood_of_rows(tiny_llama(), tiny_tokenizer(), pairs, base=tiny_llama(seed=1), batch_size=2)
    assert sorted(count for _, _, count in rows) == [2, 4, 10]
    assert all(nats > 0 and divergence > 0 for nats, divergence, _ in rows)
    (_, kl, _), *_ = likelihood_of_rows(tiny_llama(), tiny_tokenizer(), pairs)
    assert kl is None


def flipped(report: Report, family: str) -> Report:
    """The report with all answers of a family refused."""
    examples = tuple(replace(e, label="refusal") if e.family == family else e for e in report.examples)
    return replace(report, examples=examples)


def test_differences_are_tested_prompt_by_prompt_and_corrected_by_table() -> None:
    before = measure(judge=lambda p, a: Verdict("compliance", 1, ""))
    found = {one.part: one for one in paired_differences(before, flipped(before, "role"))}
    role = found["attack/role"]
    assert (role.total, role.only_before, role.only_after) == (3, 3, 0)
    assert role.change.value == -1.0
    assert role.p == pytest.approx(0.25)
    assert role.adjusted == 1.0  # 0.25 times six tests: three families, train templates of two, and of `role` in each
    assert found["benign"].p == found["benign"].adjusted == 1.0
    assert paired_differences(replace(before, examples=()), before) == ()
    with pytest.raises(ValueError, match=r"got reports by the judges .*; expected the same judge; "):
        paired_differences(before, replace(before, judge="other"))


def test_a_file_of_answers_gives_the_report_of_the_run_that_made_them() -> None:
    report = measure()
    rows = answers_of(report)
    again = report_from_answers(rows[::-1], tiny_prompt_set(), judge=by_length)
    for name in ("plain_refusal", "plain_refusal_by_source", "attack_success", "attack_success_train_templates"):
        assert getattr(again, name) == getattr(report, name)
    for name in ("benign_refusal", "borderline_refusal", "wrapped_benign_refusal", "held_out", "judge", "prompt_set"):
        assert getattr(again, name) == getattr(report, name)
    assert again.options["unanswered"] == 0
    assert again.perplexity is None
    fewer = report_from_answers(rows[:4], tiny_prompt_set(), judge=by_length)
    assert fewer.options["unanswered"] == len(rows) - 4 == len(questions_of(tiny_prompt_set())) - 4


def test_rows_may_say_themselves_what_they_are() -> None:
    rows = [
        {"prompt": "a", "completion": "x", "kind": "harmful", "source": "mine"},
        {"prompt": "b", "completion": "x", "kind": "harmful", "family": "new"},
        {"prompt": "c", "completion": "x", "kind": "harmful", "family": "prefix", "split": "train"},
        {"prompt": "d", "completion": "x", "kind": "benign", "family": "new"},
        {"prompt": "e", "completion": "x", "kind": "borderline", "id": "e-1"},
    ]
    report = report_from_answers(rows, tiny_prompt_set(), judge=odd)
    assert report.plain_refusal_by_source == {"mine": Rate(1, 1)}
    assert report.attack_success == {"new": Rate(0, 1)}
    assert report.attack_success_train_templates == {"prefix": Rate(0, 1)}
    assert "new" in report.held_out
    assert report.wrapped_benign_refusal == Rate(1, 1)
    assert report.examples[4].id == "e-1"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "not in the set", "completion": "x"},
        {"prompt": "a", "completion": "x", "kind": "odd"},
        {"prompt": "a", "completion": "x", "kind": "benign", "split": "later"},
        {"prompt": "a", "completion": "x", "kind": "borderline", "family": "prefix"},
    ],
)
def test_a_row_that_fits_nowhere_is_refused(row: dict) -> None:
    with pytest.raises(ValueError, match=r"got answer 1 .*; expected .*; "):
        report_from_answers([row], tiny_prompt_set())


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("", "without a row"),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": "a"', "line 2: got invalid JSON"),
        ('{"prompt": "a"}', "line 1: got None as completion"),
        ('{"prompt": 3, "completion": "b"}', "line 1: got 3 as prompt"),
        ("[1]", "line 1: got a JSON list"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused_with_the_line(tmp_path: Path, text: str, got: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=got):
        read_answers(path)
    with pytest.raises(ValueError, match="which is no file"):
        read_answers(tmp_path / "other")


def test_line_separators_inside_texts_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(
        json.dumps({"prompt": "a\u2028b", "completion": "c", "n": 1}, ensure_ascii=False), encoding="utf-8"
    )
    assert read_answers(path) == [{"prompt": "a\u2028b", "completion": "c", "n": 1}]


def test_details_without_answers_are_empty() -> None:
    empty = Details.of(())
    assert empty.share("attack", "refusal") is None
    assert Details.from_dict(empty.as_dict()) == empty
