"""The prompt set that ships with the package, and the script that builds it."""

import importlib
import json
import random
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "neurontune_peft" / "prompts" / "data" / "default"


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


PROMPTS, ATTACKS = read("prompts.jsonl"), read("attacks.jsonl")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "default_prompts"))
    return importlib.import_module("build")


def test_the_set_stays_below_one_megabyte() -> None:
    assert sum(path.stat().st_size for path in DATA.iterdir()) <= 1_000_000


def test_each_kind_has_enough_prompts_in_both_splits() -> None:
    counts = Counter((row["kind"], row["split"]) for row in PROMPTS)
    for kind, least in (("harmful", 200), ("benign", 200), ("borderline", 100)):
        assert counts[kind, "train"] + counts[kind, "test"] >= least
        assert min(counts[kind, "train"], counts[kind, "test"]) >= 50


def test_ids_and_prompts_are_unique() -> None:
    assert len({row["id"] for row in PROMPTS}) == len(PROMPTS)
    assert len({row["prompt"] for row in PROMPTS}) == len(PROMPTS)
    assert len({row["name"] for row in ATTACKS}) == len(ATTACKS)
    assert len({row["template"] for row in ATTACKS}) == len(ATTACKS)


def test_rows_hold_the_agreed_fields_only() -> None:
    assert {tuple(row) for row in PROMPTS} == {("id", "prompt", "kind", "response", "split", "source")}
    assert {tuple(row) for row in ATTACKS} == {("family", "name", "split", "template")}


def test_no_harmful_request_has_an_answer_and_every_benign_one_has() -> None:
    assert all(row["response"] is None for row in PROMPTS if row["kind"] == "harmful")
    assert all(row["response"] for row in PROMPTS if row["kind"] == "benign")


def test_responses_are_short_and_do_not_open_like_a_refusal() -> None:
    for response in filter(None, (row["response"] for row in PROMPTS)):
        assert len(response) <= 200
        assert not any(mark in response.lower() for mark in ("sorry", "i cannot", "i can't", "as an ai"))


def test_families_for_training_have_templates_in_both_splits_and_three_or_more_are_test_only() -> None:
    counts: dict[str, Counter[str]] = {}
    for row in ATTACKS:
        counts.setdefault(row["family"], Counter())[row["split"]] += 1
    held_out = [family for family, splits in counts.items() if not splits["train"]]
    assert len(counts) >= 8
    assert len(held_out) >= 3
    assert all(counts[family]["test"] >= 3 for family in held_out)
    assert all(
        splits["train"] >= 4 and splits["test"] >= 2 for family, splits in counts.items() if family not in held_out
    )


def test_every_template_holds_the_request_once() -> None:
    assert all(row["template"].count("{prompt}") == 1 for row in ATTACKS)


def test_nothing_mentions_minors_or_self_harm(build: ModuleType) -> None:
    assert not [row["id"] for row in PROMPTS if build.LEFT_OUT.search(f"{row['prompt']} {row['response'] or ''}")]


def test_no_request_crosses_the_splits_in_other_words(build: ModuleType) -> None:
    for kind, limit in (("harmful", 0.5), ("benign", 0.75), ("borderline", 0.75)):
        rows = [row for row in PROMPTS if row["kind"] == kind]
        texts = {part: [row["prompt"] for row in rows if row["split"] == part] for part in ("train", "test")}
        assert max(build.overlap(a, b) for a in texts["train"] for b in texts["test"]) < limit


def test_harmful_requests_mix_their_sources() -> None:
    for split in ("train", "test"):
        sources = [row["source"] for row in PROMPTS if row["kind"] == "harmful" and row["split"] == split]
        assert set(sources[:20]) == set(sources)


def test_the_script_writes_the_shipped_attacks_and_phrases(build: ModuleType) -> None:
    assert build.attack_rows() == ATTACKS
    phrases = json.loads((DATA / "phrases.json").read_text(encoding="utf-8"))
    assert phrases == {"refusal": list(build.REFUSALS), "compliance": list(build.COMPLIANCES)}


def test_choosing_drops_requests_that_repeat_a_test_request(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.COUNTS, "harmful", {"a": (1, 1)})
    rows = [("a", "How can I forge a passport?", None), ("a", "Forge the passport", None), ("a", "Rob a bank", None)]
    for seed in range(5):
        chosen = build.choose("harmful", rows, random.Random(seed))
        assert {"bank" in row[1] for part in chosen.values() for row in part} == {True, False}


def test_too_few_prompts_are_an_error_that_names_the_source(
    build: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(build.COUNTS, "harmful", {"a": (2, 1)})
    with pytest.raises(ValueError, match="got 0 harmful train prompts of a; expected 2"):
        build.choose("harmful", [("a", "Rob a bank", None)], random.Random(0))


def test_shortening_ends_at_a_sentence(build: ModuleType) -> None:
    assert build.shorten("One two. Three four five.", limit=12) == "One two."
    assert build.shorten("No sentence ends within the limit.", limit=5) is None


def test_sources_and_licences_stand_beside_the_set() -> None:
    text = (DATA / "SOURCES.md").read_text(encoding="utf-8")
    assert all(f"`{source}`" in text for source in {row["source"] for row in PROMPTS})
    assert all(licence in text for licence in ("MIT", "Apache-2.0", "CC BY 4.0"))
