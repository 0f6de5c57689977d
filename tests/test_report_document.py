"""Reports as files: what is read, what is refused, what the page and the Markdown say."""

import json
import re
from dataclasses import replace
from itertools import pairwise

import jsonschema
import pytest
from reports import BASE, TUNED, full_document, measured

from neurontune_peft.cli import main
from neurontune_peft.evaluation import Example, Rate
from neurontune_peft.report import Document, difference, report_html, report_markdown, write_report
from neurontune_peft.report.document import SCHEMA
from neurontune_peft.report.examples import chosen, pairs_of
from neurontune_peft.report.verdict import verdict


def test_a_document_survives_its_json_and_the_published_schema_accepts_it(tmp_path):
    document = full_document()
    document.save(tmp_path / "report.json")
    assert Document.load(tmp_path) == document
    schema = json.loads(SCHEMA.read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document.as_dict(), schema)
    jsonschema.validate(Document(None, TUNED).as_dict(), schema)
    broken = document.as_dict() | {"schema_version": "1"}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(broken, schema)


def test_a_report_of_a_newer_schema_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="got schema_version 2 in the report; expected 1 to 1; upgrade"):
        Document.from_dict(full_document().as_dict() | {"schema_version": 2})


def test_comparisons_of_the_first_version_and_single_measurements_are_read():
    old = {
        "format_version": 1,
        "summary": "",
        "before": BASE.as_dict(),
        "after": TUNED.as_dict(),
        "counts": {"0.5": BASE.as_dict()},
        "provenance": {"seed": 1, "metrics": {}},
    }
    document = Document.from_dict(old)
    assert (document.before, document.after) == (BASE, TUNED)
    assert document.provenance == {"seed": 1}
    assert list(document.counts) == ["0.5"]
    alone = Document.from_dict(TUNED.as_dict())
    assert (alone.before, alone.after) == (None, TUNED)
    assert "20.0% of attacks succeed" in alone.verdict


def test_the_verdict_names_only_costs_that_rose_measurably():
    assert verdict(BASE, TUNED) == (
        "Attack success fell from 85.0% to 20.0% on average over 2 families (held-out families: from 80.0% to 30.0%); "
        "no cost rose measurably (judge: format only)."
    )
    refusing = {("attack", "prefix"): 9, ("attack", "role"): 7, ("borderline", None): 9}
    worse = measured(refusing, perplexity=28.6)
    text = verdict(BASE, worse)
    assert "refusals of borderline requests rose from 10.0% to 90.0%" in text  # 8 of 8 changed: p = 0.008
    assert "perplexity rose from 28.00 to 28.60" in text
    without_answers = [
        replace(report, examples=()) for report in (BASE, replace(worse, borderline_refusal=Rate(4, 10)))
    ]
    assert "borderline" not in verdict(*without_answers)  # the intervals overlap


def test_reports_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match="got reports with judge"):
        Document(BASE, replace(TUNED, judge="other"))


def test_parts_beside_the_report_become_parts_of_it(tmp_path):
    full = full_document()
    replace(full, frontier=None, certificate=None, stress=None).save(tmp_path / "report.json")
    assert Document.load(tmp_path).frontier is None
    for name in ("frontier", "certificate", "stress"):
        (tmp_path / f"{name}.json").write_text(json.dumps(getattr(full, name)))
    assert Document.load(tmp_path) == full


def test_the_command_rebuilds_all_from_the_json_alone(tmp_path, capsys):
    full_document().save(tmp_path / "report.json")
    assert main(["report", str(tmp_path), "--pictures"]) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.html", "report.md", "report.json", "families.svg", "frontier.png", "layers.svg"} <= names
    assert (tmp_path / "frontier.png").read_bytes().startswith(b"\x89PNG")
    first = {path.name: path.read_bytes() for path in tmp_path.glob("report.*")}
    assert main(["report", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.glob("report.*")} == first
    assert full_document().verdict in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "invalid JSON"),
        ("[]", "without a JSON object"),
        ('{"kind": "neurontune-report", "schema_version": 9}', "got schema_version 9"),
        ('{"kind": "neurontune-report", "schema_version": 1, "before": null}', "missing or wrong field"),
        ('{"before": {}, "after": {}, "format_version": 99}', "got format_version 99"),
    ],
)
def test_files_that_are_no_report_are_refused_before_anything_is_written(tmp_path, capsys, text, message):
    (tmp_path / "report.json").write_text(text)
    assert main(["report", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("part", [{"points": [{"strength": "x"}]}, {"points": 3}, {"other": []}])
def test_a_part_of_another_form_is_refused_before_anything_is_written(tmp_path, part):
    with pytest.raises(ValueError, match="got a report with a part of an unknown form"):
        write_report(replace(full_document(), frontier=part), tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_parts_are_absent_from_page_and_markdown():
    full, bare = full_document(), Document(BASE, TUNED)
    for title in ("Frontier of the dial", "Certified setting", "Neurons by layer", "Under stress", "Fewer neurons"):
        assert title in report_html(full)
        assert title not in report_html(bare)
    for title in ("## Frontier", "## Certified setting", "## Neurons", "## Under stress"):
        assert title in report_markdown(full)
        assert title not in report_markdown(bare)


def test_markup_in_answers_and_names_is_escaped_in_the_page_and_the_markdown():
    attack = '</script><script>alert(1)</script><img src=x onerror="alert(2)">'
    example = Example("i", "benign", None, f"{attack}", f"{attack}`|[x](javascript:alert(3))", "compliance")
    hostile = replace(TUNED, examples=(example,))
    document = replace(
        full_document(),
        before=replace(BASE, examples=(example,)),
        after=hostile,
        details={attack: "```\n<script>"},
        provenance={attack: attack},
        stress={"rows": [dict.fromkeys(("name", "what", "note"), attack) | _NUMBERS]},
    )
    page, text = report_html(document), report_markdown(document)
    assert "<script>alert" not in page
    assert "<img" not in page
    assert page.count("<script>") == 1
    assert "<img" not in text.split("```")[0] + text.rpartition("```")[2]
    assert "| &lt;/script>" in text


_NUMBERS = {"base": 0.1, "tuned": 0.1, "stressed": 0.1, "held": None}


def test_the_page_points_nowhere_and_lets_only_its_own_script_run():
    page = report_html(full_document())
    assert set(re.findall(r'(?:src|href)="([^"#]*)', page)) <= {"", "data:,"}
    assert "url(" not in page
    assert "@import" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


def test_the_page_is_structured_for_keyboard_and_screen_reader():
    page = report_html(full_document())
    for landmark in ("<header", "<nav aria-label", "<main", "<footer", 'class="skip" href="#main"', 'lang="en"'):
        assert landmark in page
    assert page.count("<table") == page.count("<caption>")
    assert not re.search(r"<th(?! scope)[ >]", page)
    assert page.count("<svg") == page.count('<svg role="img" aria-labelledby')
    ids = set(re.findall(r' id="([^"]+)"', page))
    assert set(re.findall(r'aria-(?:labelledby|controls)="([^"]+)"', page)) <= ids
    assert set(re.findall(r'href="#([^"]+)"', page)) <= ids
    levels = [int(level) for level in re.findall(r"<h(\d)", page)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_harmful_requests_and_what_complies_with_them_are_folded():
    page = report_html(full_document())
    shown = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert "Request 3 of plain" in page
    assert "Request 3 of plain" not in shown
    assert "Request 3 of attack" not in shown
    assert "to attack." not in shown  # answers that comply
    assert "Request 3 of benign" in shown


def test_a_page_is_bounded_and_says_so():
    long = measured({}, count=200)
    long = replace(long, examples=tuple(replace(e, answer=e.answer + "x" * 5000) for e in long.examples))
    page = report_html(Document(long, long))
    assert page.count('class="example"') == 400
    assert "A sample of 400 of 1,000 answers" in page
    assert "characters more]" in page
    assert len(page) < 2_000_000


def test_a_sample_takes_turns_between_groups_and_changed_answers_come_first():
    pairs = pairs_of(BASE, TUNED)
    assert len(pairs) == 50
    sample = chosen(pairs, 10)
    assert sorted({(p.group, p.family) for p in sample}, key=str) == sorted(
        {(p.group, p.family) for p in pairs}, key=str
    )
    attacks = [p for p in sample if p.group == "attack"]
    assert {p.change for p in attacks} == {"newly refused"}


def test_several_answers_to_one_text_are_paired_in_their_order():
    one = replace(BASE, examples=(BASE.examples[0], replace(BASE.examples[0], answer="second")))
    assert [(p.before.answer, p.after.answer) for p in pairs_of(one, one)][1] == ("second", "second")


def test_a_difference_tests_the_same_requests_and_corrects_for_many_rows():
    text = difference(full_document().as_dict(), Document(None, measured({("attack", "role"): 7})).as_dict())
    row = next(line for line in text.splitlines() if "attack success, prefix" in line)
    # 9 requests are refused by A only: p = 2 / 2 ** 9 = 0.0039; with the row of plain requests, smallest of 5 rows.
    assert [cell.strip() for cell in row.strip("|").split("|")][3:] == ["+90.0 points", "10", "0.0195"]
    assert "| attack success, role (held out) |" in text
    assert "Not the same" not in text


def test_a_difference_of_reports_by_other_judges_or_without_answers_has_no_test_and_says_why():
    other = replace(TUNED, judge="rubric", prompt_set="cd" * 32, examples=())
    text = difference(BASE.as_dict(), other.as_dict())
    assert "**Not the same judge**: format only and rubric." in text
    assert "**Not the same prompt set**" in text
    assert "No test" in text
    with pytest.raises(ValueError, match="format_version"):
        difference({}, BASE.as_dict())
