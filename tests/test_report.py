"""Tables that compare two reports."""

from dataclasses import replace

import pytest

from neurontune_peft.evaluation import Rate, Report
from neurontune_peft.judges import format_judge
from neurontune_peft.report import compare_markdown, summary

BEFORE = Report(
    plain_refusal=Rate(19, 20),
    plain_refusal_by_source={"advbench": Rate(9, 10), "cat|qa": Rate(10, 10)},
    attack_success={"prefix": Rate(15, 20), "role": Rate(12, 20), "persona": Rate(13, 20), "debug": Rate(16, 20)},
    attack_success_train_templates={"prefix": Rate(18, 20), "persona": Rate(10, 20)},
    held_out=("role", "debug"),
    benign_refusal=Rate(1, 20),
    borderline_refusal=Rate(6, 20),
    wrapped_benign_refusal=Rate(0, 20),
    perplexity=28.026,
    kl=None,
    judge="format only",
    judge_limits=format_judge.limits,
    prompt_set="ab" * 32,
    options={"max_new_tokens": 32, "batch_size": 64, "chat_template": None},
)
AFTER = replace(
    BEFORE,
    attack_success={"prefix": Rate(1, 20), "role": Rate(2, 20), "persona": Rate(0, 20), "debug": Rate(3, 20)},
    borderline_refusal=Rate(8, 20),
    wrapped_benign_refusal=Rate(1, 20),
    perplexity=28.306,
    kl=0.0123,
)


def section(text: str, start: str, end: str) -> str:
    return text[text.index(start) : text.index(end)]


def test_held_out_families_are_marked_and_apart_from_those_for_training() -> None:
    text = compare_markdown(BEFORE, AFTER)
    trained = section(text, "| family (", "Held-out families")
    held_out = section(text, "| held-out family", "Mean over all")
    assert "| prefix |" in trained
    assert "role" not in trained
    assert "| role (held out) | 60.0% (38.7%–78.1%), 12/20 | 10.0% (2.8%–30.1%), 2/20 | -50.0 points |" in held_out
    assert "| **mean** | 70.0% | 2.5% | -67.5 points |" in trained
    assert "Mean over all 4 families: 70.0% before, 7.5% after." in text


def test_refusals_perplexity_and_kl_stand_in_the_tables() -> None:
    text = compare_markdown(BEFORE, AFTER)
    for row in (
        "| plain harmful | 95.0% (76.4%–99.1%), 19/20 |",
        "| plain harmful, cat\\|qa | 100.0%",
        "| benign | 5.0%",
        "| benign inside test templates | 0.0% (0.0%–16.1%), 0/20 | 5.0% (0.9%–23.6%), 1/20 | +5.0 points |",
        "| perplexity per token | 28.03 | 28.31 | +1.0% |",
        "| KL(base, model), nats per token | – | 0.0123 | – |",
    ):
        assert row in text


def test_every_table_of_verdicts_names_the_judge_and_one_line_its_limits() -> None:
    text = compare_markdown(BEFORE, AFTER)
    tables = text.count("|---|---|---|---|")
    assert tables == 5
    assert text.count("(judge: format only)") == tables - 1  # perplexity and KL need no judge
    assert "(no judge)" in text
    assert text.count(format_judge.limits) == 1
    assert all(line.count("|") - line.count("\\|") == 5 for line in text.splitlines() if line.startswith("|"))


def test_what_was_not_measured_is_a_dash_and_an_empty_table_says_so() -> None:
    bare = replace(
        BEFORE,
        plain_refusal=None,
        benign_refusal=None,
        perplexity=None,
        attack_success={},
        attack_success_train_templates={},
    )
    text = compare_markdown(bare, bare)
    assert "| benign | – | – | – |" in text
    assert text.count("Not measured.") == 3
    assert summary(bare, bare).startswith("Attack success went from – to –")


def test_unscored_answers_are_counted_in_the_judges_line() -> None:
    text = compare_markdown(replace(BEFORE, unscored=2), replace(AFTER, unscored=1))
    assert "3 answers that it could not tell about are left out." in text


def test_the_summary_is_one_sentence_with_gain_and_cost() -> None:
    assert summary(BEFORE, AFTER) == (
        "Attack success went from 70.0% to 7.5% on average over 4 families (held-out families: 70.0% to 12.5%); "
        "refusals of borderline requests from 30.0% to 40.0%, refusals of benign requests from 5.0% to 5.0%, refusals "
        "of benign requests inside templates from 0.0% to 5.0%, perplexity from 28.03 to 28.31 (judge: format only)."
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_set": "cd" * 32},
        {"judge": "rubric"},
        {"options": {**BEFORE.options, "max_new_tokens": 8}},
        {"options": {**BEFORE.options, "chat_template": "x"}},
    ],
)
def test_reports_that_cannot_be_compared_are_refused(changes: dict) -> None:
    for compare in (compare_markdown, summary):
        with pytest.raises(ValueError, match=r"got reports with .*; expected the same in both; "):
            compare(BEFORE, replace(AFTER, **changes))


def test_another_batch_size_can_be_compared() -> None:
    assert summary(BEFORE, replace(AFTER, options={**BEFORE.options, "batch_size": 1}))
