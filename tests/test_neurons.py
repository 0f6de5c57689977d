"""Scores and neurons: small values that save, load and print themselves and refuse nonsense."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from neurontune_peft import Neurons, Scores

WIDTHS = {"a": 10, "b": 4, "c": 6}
NEURONS = Neurons.from_ranked({"safety": [("b", 3), ("a", 9), ("b", 0)], "utility": [("a", 0)]}, widths=WIDTHS)


def test_neurons_know_their_counts_sites_and_ranking():
    assert NEURONS.counts == {"safety": {"a": 1, "b": 2}, "utility": {"a": 1}}
    assert NEURONS.totals == {"safety": 3, "utility": 1}
    assert (NEURONS.total, NEURONS.sites, NEURONS.roles) == (4, ("a", "b"), ("safety", "utility"))
    assert NEURONS.ranked("safety") == [("b", 3), ("a", 9), ("b", 0)]
    assert NEURONS.indices["safety"]["b"].tolist() == [3, 0]
    assert NEURONS.ranks["safety"]["b"].tolist() == [0, 2]


def test_head_keeps_the_top_ranked_neurons_of_the_named_role():
    head = NEURONS.head(safety=1)
    assert head.ranked("safety") == [("b", 3)]
    assert head.ranked("utility") == [("a", 0)]
    assert NEURONS.head(safety=0).totals["safety"] == 0
    with pytest.raises(ValueError, match="got safety=4; expected at most"):
        NEURONS.head(safety=4)
    with pytest.raises(ValueError, match="got other=1; expected"):
        NEURONS.head(other=1)


def test_neurons_print_their_numbers():
    assert str(NEURONS).splitlines() == [
        "4 neurons (20.0%) at 2 of 3 sites",
        "  safety: 3 (a 1, b 2)",
        "  utility: 1 (a 1)",
    ]


def test_neurons_are_the_same_after_saving_and_loading(tmp_path):
    NEURONS.save(tmp_path / "neurons.json")
    loaded = Neurons.load(tmp_path / "neurons.json")
    assert {role: loaded.ranked(role) for role in loaded.roles} == {r: NEURONS.ranked(r) for r in NEURONS.roles}
    assert loaded.widths == WIDTHS
    loaded.save(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "neurons.json").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.json", "neurons.json"]


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_ranking_survives_saving_and_loading(tmp_path_factory, data):
    everything = [(site, index) for site, width in WIDTHS.items() for index in range(width)]
    chosen = data.draw(st.lists(st.sampled_from(everything), unique=True, min_size=1))
    cut = data.draw(st.integers(0, len(chosen)))
    neurons = Neurons.from_ranked({"safety": chosen[:cut], "utility": chosen[cut:]}, widths=WIDTHS)
    path = tmp_path_factory.mktemp("neurons") / "n.json"
    neurons.save(path)
    loaded = Neurons.load(path)
    assert loaded.ranked("safety") == chosen[:cut]
    assert loaded.ranked("utility") == chosen[cut:]


def safety(*pairs: tuple[str, int], **roles: list[tuple[str, int]]) -> Neurons:
    return Neurons.from_ranked({"safety": list(pairs), **roles}, widths=WIDTHS)


LEFT = safety(("b", 3), ("a", 9), ("b", 0), utility=[("a", 0)])
RIGHT = safety(("c", 1), ("b", 0), ("b", 3), other=[("a", 5)])


def test_a_union_keeps_the_ranking_of_the_left_and_then_of_the_right():
    union = LEFT | RIGHT
    assert union.ranked("safety") == [("b", 3), ("a", 9), ("b", 0), ("c", 1)]
    assert union.ranked("utility") == [("a", 0)]
    assert union.ranked("other") == [("a", 5)]


def test_intersection_and_difference_keep_the_ranking_of_the_left():
    assert (LEFT & RIGHT).ranked("safety") == [("b", 3), ("b", 0)]
    assert (LEFT & RIGHT).totals == {"safety": 2, "utility": 0}
    assert (LEFT - RIGHT).ranked("safety") == [("a", 9)]
    assert (RIGHT - LEFT).ranked("safety") == [("c", 1)]
    assert (LEFT - RIGHT).ranked("utility") == [("a", 0)]


def test_a_neuron_in_another_role_is_not_shared_and_cannot_be_united():
    swapped = Neurons.from_ranked({"utility": [("b", 3)]}, widths=WIDTHS)
    assert (LEFT & swapped).total == 0
    assert (LEFT - swapped).ranked("safety") == LEFT.ranked("safety")
    with pytest.raises(ValueError, match=r"got neuron index 3 more than once at 'b'; expected .* one role only"):
        LEFT | swapped


def test_jaccard_is_the_share_of_common_neurons():
    assert LEFT.jaccard(RIGHT, "safety") == 2 / 4
    assert LEFT.jaccard(RIGHT) == 2 / 6
    assert LEFT.jaccard(LEFT) == 1.0
    assert LEFT.jaccard(RIGHT, role="utility") == 0.0
    assert safety().jaccard(safety()) == 1.0
    with pytest.raises(ValueError, match=r"got role 'safe'; expected one of \['other', 'safety', 'utility'\]"):
        LEFT.jaccard(RIGHT, "safe")


def test_selections_of_different_models_are_not_combined():
    other = Neurons.from_ranked({"safety": [("a", 1)]}, widths={"a": 11})
    for combine in (LEFT.__or__, LEFT.__and__, LEFT.__sub__, LEFT.jaccard):
        with pytest.raises(
            ValueError, match="got neurons of 'a' with widths 10 and 11; expected two selections of one"
        ):
            combine(other)


everything = [(site, index) for site, width in WIDTHS.items() for index in range(width)]
some_neurons = st.lists(st.sampled_from(everything), unique=True).map(lambda pairs: safety(*pairs))


@settings(max_examples=50, deadline=None)
@given(one=some_neurons, two=some_neurons)
def test_set_algebra_agrees_with_sets(one, two):
    left, right = set(one.ranked("safety")), set(two.ranked("safety"))
    assert set((one | two).ranked("safety")) == left | right
    assert set((one & two).ranked("safety")) == left & right
    assert set((one - two).ranked("safety")) == left - right
    assert (one | two).total == (one & two).total + (one - two).total + (two - one).total
    assert one.jaccard(two) == two.jaccard(one)


def test_a_histogram_counts_every_site_in_the_order_of_the_model():
    assert LEFT.histogram() == {"a": 2, "b": 2, "c": 0}
    assert LEFT.histogram("safety") == {"a": 1, "b": 2, "c": 0}
    with pytest.raises(ValueError, match="got role 'other'; expected one of"):
        LEFT.histogram("other")


def test_a_histogram_is_drawn_with_bars():
    assert LEFT.histogram_text("safety").splitlines() == ["a  1  " + "#" * 20, "b  2  " + "#" * 40, "c  0"]
    assert safety().histogram_text().splitlines() == ["a  0", "b  0", "c  0"]


def test_neurons_have_a_json_form_whose_bytes_are_stable():
    assert LEFT.to_json() == (
        '{"format_version":1,"sites":[["a",10],["b",4],["c",6]],'
        '"roles":{"safety":[[1,3],[0,9],[1,0]],"utility":[[0,0]]}}\n'
    )
    again = Neurons.from_ranked({"utility": [("a", 0)], "safety": [("b", 3), ("a", 9), ("b", 0)]}, widths=dict(WIDTHS))
    assert again.to_json() == LEFT.to_json()
    assert Neurons.from_json(LEFT.to_json()).to_json() == LEFT.to_json()
    with pytest.raises(ValueError, match=r"got 'JSON' .*expected a neuron file"):
        Neurons.from_json("[]")


def test_layer_matched_random_neurons_have_the_same_number_per_site_and_role_and_share_none():
    wide = Neurons.from_ranked(
        {"safety": [("b", 3), ("a", 40), ("b", 0)], "utility": [("a", 0), ("b", 9)]},
        widths={"a": 50, "b": 20, "c": 6},
    )
    own = {pair for role in wide.roles for pair in wide.ranked(role)}
    drawn = [wide.layer_matched_random(seed) for seed in range(20)]
    for one in drawn:
        assert one.counts == wide.counts
        assert one.widths == wide.widths
        assert not own & {pair for role in one.roles for pair in one.ranked(role)}
        for cut in range(4):
            assert one.head(safety=cut).counts == wide.head(safety=cut).counts
    assert drawn[3].to_json() == wide.layer_matched_random(3).to_json()
    assert len({one.to_json() for one in drawn}) > 15


def test_every_other_neuron_of_a_site_can_be_drawn():
    reached = {pair for seed in range(60) for pair in LEFT.layer_matched_random(seed).ranked("safety")}
    assert reached == {("a", i) for i in range(1, 9)} | {("b", 1), ("b", 2)}
    own = {pair for seed in range(60) for pair in LEFT.layer_matched_random(seed, exclude=False).ranked("safety")}
    assert own == {("a", i) for i in range(10)} | {("b", i) for i in range(4)}


def test_a_site_with_too_few_other_neurons_fills_up_with_its_own():
    crowded = safety(*(("b", index) for index in range(3)))
    drawn = [set(crowded.layer_matched_random(seed).ranked("safety")) for seed in range(20)]
    assert all(len(pairs) == 3 and ("b", 3) in pairs for pairs in drawn)


@pytest.mark.parametrize(
    ("ranked", "message"),
    [
        ({"safety": [("a", 10)]}, "got neuron index 10 at 'a'; expected 0 to 9"),
        ({"safety": [("a", -1)]}, "got neuron index -1 at 'a'; expected 0 to 9"),
        ({"safety": [("a", 1), ("a", 1)]}, "got neuron index 1 more than once at 'a'"),
        ({"safety": [("a", 1)], "utility": [("a", 1)]}, "got neuron index 1 more than once at 'a'"),
        ({"safety": [("z", 1)]}, "got neurons of 'z' without its width"),
    ],
)
def test_impossible_neurons_are_refused(ranked, message):
    with pytest.raises(ValueError, match=message):
        Neurons.from_ranked(ranked, widths=WIDTHS)


def test_ranks_must_be_a_permutation():
    index = {"safety": {"a": torch.tensor([1, 2])}}
    with pytest.raises(ValueError, match="got ranks of role 'safety'"):
        Neurons(indices=index, ranks={"safety": {"a": torch.tensor([0, 2])}}, widths=WIDTHS)
    with pytest.raises(ValueError, match="got ranks that do not match"):
        Neurons(indices=index, ranks={"safety": {"a": torch.tensor([0])}}, widths=WIDTHS)


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"format_version": 1, "sites": [["a", 3]], "roles": {"s": [[5, 0]]}}']
)
def test_a_damaged_neuron_file_is_refused(tmp_path, content):
    (tmp_path / "n.json").write_text(content)
    with pytest.raises(ValueError, match=r"got '.*n.json' .*expected a neuron file; write one"):
        Neurons.load(tmp_path / "n.json")


def test_a_neuron_file_of_a_newer_format_is_refused(tmp_path):
    NEURONS.save(tmp_path / "n.json")
    content = json.loads((tmp_path / "n.json").read_text()) | {"format_version": 9}
    (tmp_path / "n.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"got format_version 9 .*; expected 1 to 1; upgrade"):
        Neurons.load(tmp_path / "n.json")


SCORES = Scores(
    values={
        "utility": {"b": torch.tensor([0.5, -1.0])},
        "safety": {"b": torch.tensor([1.0, 2.0]), "a": torch.zeros(3)},
    },
    metadata={"method": "gradient", "seed": "0"},
)


def test_scores_are_the_same_after_saving_and_loading(tmp_path):
    SCORES.save(tmp_path / "s.safetensors")
    loaded = Scores.load(tmp_path / "s.safetensors")
    assert loaded.metadata == SCORES.metadata
    assert loaded.roles == ("utility", "safety")
    assert list(loaded.values["safety"]) == ["b", "a"]
    for role, sites in SCORES.values.items():
        assert all(torch.equal(loaded.values[role][site], score) for site, score in sites.items())


def test_scores_print_where_they_come_from_and_the_highest():
    assert str(SCORES).splitlines() == [
        "Scores of 5 neurons at 2 sites (method gradient, seed 0)",
        "  utility: highest 0.5 at b[0]",
        "  safety: highest 2 at b[1]",
    ]


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="got a NaN or infinite score for role 'safety' at 'a', neuron 1"):
        Scores(values={"safety": {"a": torch.tensor([0.0, float("nan")])}})
    with pytest.raises(ValueError, match=r"got scores of shape \(2, 2\)"):
        Scores(values={"safety": {"a": torch.zeros(2, 2)}})


def test_a_damaged_score_file_is_refused(tmp_path):
    path = tmp_path / "s.safetensors"
    SCORES.save(path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="expected a score file; write one with"):
        Scores.load(path)
    with pytest.raises(ValueError, match="expected a score file"):
        Scores.load(tmp_path / "missing.safetensors")
