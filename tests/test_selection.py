"""Which neurons are kept: counts, ranks, ties, caps, and neurons that two roles want."""

import math
from collections import Counter

import pytest
import torch
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.cli.select import Select
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.selection import select
from neurontune_peft.selection.candidates import block_number
from neurontune_peft.selection.filling import spread_out
from neurontune_peft.selection.select import largest_share
from neurontune_peft.tuner.targets import in_chosen_layers


def scores(**roles: dict[str, list[float]]) -> Scores:
    return Scores({role: {site: torch.tensor(v) for site, v in sites.items()} for role, sites in roles.items()})


ONE = scores(safety={"a": [0.1, 0.9, -5.0], "b": [0.5, 0.0, 0.7]})
TWO = scores(safety={"a": [9.0, 8.0, 7.0, 6.0, 5.0]}, utility={"a": [9.0, 1.0, 8.0, 2.0, 3.0]})


def test_the_highest_scores_are_kept_in_the_order_of_their_rank():
    neurons = select(ONE, {"safety": 3})
    assert neurons.ranked("safety") == [("a", 1), ("b", 2), ("b", 0)]
    assert neurons.widths == {"a": 3, "b": 3}


def test_a_float_is_a_share_of_all_neurons():
    assert select(ONE, {"safety": 0.5}).totals == {"safety": 3}
    assert select(ONE, {"safety": 0.01}).totals == {"safety": 1}  # a share that is asked for is never empty


def test_a_role_with_no_neurons_is_left_out():
    assert select(TWO, {"safety": 2, "utility": 0}).totals == {"safety": 2}
    assert select(TWO, {"safety": 2, "utility": 0.0}).totals == {"safety": 2}


def test_equal_scores_are_ranked_by_site_and_index():
    tied = scores(safety={"b": [1.0, 2.0, 1.0], "a": [1.0, 1.0, 1.0]})
    assert select(tied, {"safety": 4}).ranked("safety") == [("b", 1), ("b", 0), ("b", 2), ("a", 0)]


def test_neurons_with_a_score_of_zero_or_less_are_never_selected():
    with pytest.raises(ValueError, match=r"got counts \{'safety': 5\}; expected at most \{'safety': 4\}.*lower"):
        select(ONE, {"safety": 5})
    assert ("b", 1) not in select(ONE, {"safety": 4}).ranked("safety")


def test_neurons_that_two_roles_want_are_dropped_and_replaced_by_the_next():
    both = scores(safety={"a": [9.0, 8.0, 7.0, 6.0, 1.0, 2.0]}, utility={"a": [9.0, 1.0, 8.0, 2.0, 7.0, 6.0]})
    neurons = select(both, {"safety": 2, "utility": 2})
    # Both want 0. Safety then reaches 2, which utility holds, so 2 goes as well; 3 and 4, 5 replace them.
    assert neurons.ranked("safety") == [("a", 1), ("a", 3)]
    assert neurons.ranked("utility") == [("a", 4), ("a", 5)]


def test_dropping_stops_when_nothing_is_shared():
    apart = scores(safety={"a": [9.0, 8.0, 7.0, 1.0]}, utility={"a": [9.0, 1.0, 2.0, 8.0]})
    neurons = select(apart, {"safety": 1, "utility": 1})
    assert neurons.ranked("safety") == [("a", 1)]
    assert neurons.ranked("utility") == [("a", 3)]


@pytest.mark.parametrize(("winner", "safety", "utility"), [("safety", [0, 1], [2, 4]), ("utility", [1, 3], [0, 2])])
def test_a_named_role_keeps_the_neurons_that_both_want(winner, safety, utility):
    neurons = select(TWO, {"safety": 2, "utility": 2}, overlap=winner)
    assert [index for _, index in neurons.ranked("safety")] == safety
    assert [index for _, index in neurons.ranked("utility")] == utility


def test_no_neuron_has_two_roles_and_each_role_is_its_ranking_without_the_shared_ones():
    generator = torch.Generator().manual_seed(0)
    values = {role: {"a": torch.rand(200, generator=generator)} for role in ("one", "two", "three")}
    neurons = select(Scores(values), {"one": 40, "two": 30, "three": 20})
    chosen = {role: [index for _, index in neurons.ranked(role)] for role in neurons.roles}
    everything = [index for part in chosen.values() for index in part]
    assert len(everything) == len(set(everything)) == 90
    reach = {}
    for role, part in chosen.items():
        order = values[role]["a"].argsort(descending=True).tolist()
        reach[role] = order[: order.index(part[-1]) + 1]
    for role, part in chosen.items():
        others = {index for other in reach if other != role for index in reach[other]}
        assert [index for index in reach[role] if index not in others] == part


def test_identical_rankings_of_two_roles_leave_nothing_to_select():
    same = scores(safety={"a": [3.0, 2.0, 1.0]}, utility={"a": [3.0, 2.0, 1.0]})
    with pytest.raises(ValueError, match="expected at most"):
        select(same, {"safety": 1, "utility": 1})
    assert select(same, {"safety": 1, "utility": 1}, overlap="safety").ranked("utility") == [("a", 1)]


def test_per_layer_caps_the_neurons_of_each_site():
    crowded = scores(safety={"a": [9.0, 8.0, 7.0, 6.0], "b": [1.0, 2.0, 3.0, 4.0]})
    assert select(crowded, {"safety": 3}, per_layer=2).ranked("safety") == [("a", 0), ("a", 1), ("b", 3)]
    assert select(crowded, {"safety": 2}, per_layer=0.25).ranked("safety") == [("a", 0), ("b", 3)]


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"other": 1}, {}, "expected at least one neuron of the roles"),
        ({}, {}, "expected at least one neuron"),
        ({"safety": 0}, {}, "expected at least one neuron"),
        ({"safety": -1}, {}, "expected a number of neurons"),
        ({"safety": True}, {}, "expected a number of neurons"),
        ({"safety": 1.5}, {}, "expected a share up to 1.0"),
        ({"safety": float("nan")}, {}, "expected a number of neurons"),
        ({"safety": 1}, {"overlap": "both"}, "got overlap='both'; expected 'drop' or one of"),
    ],
)
def test_impossible_requests_are_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        select(ONE, counts, **options)


def test_the_best_thousand_of_ten_million_neurons_are_found():
    generator = torch.Generator().manual_seed(0)
    values = {"safety": {f"site.{i}": torch.randn(100_000, generator=generator) for i in range(100)}}
    large = Scores(values)
    neurons = select(large, {"safety": 1000})
    best = torch.cat(list(values["safety"].values())).topk(1000).indices
    assert {int(site.split(".")[1]) * 100_000 + i for site, i in neurons.ranked("safety")} == set(best.tolist())


DEEP = {f"model.layers.{i}.mlp.down_proj": [float(10 * i + j + 1) for j in range(4)] for i in range(5)}


def ranked_sites(neurons, role="safety"):
    return [int(site.split(".")[2]) for site, _ in neurons.ranked(role)]


RIVALS = scores(safety={"a": [10.0, 8.0, 6.0, 1.0, -2.0]}, utility={"a": [-100.0, 50.0, 80.0, -5.0, 20.0]})


def test_difference_gives_a_neuron_to_the_role_in_which_it_scores_relatively_higher():
    # Shares of the largest absolute score: safety 1, .8, .6, .1, -.2 and utility -1, .5, .8, -.05, .2.
    neurons = select(RIVALS, {"safety": 3, "utility": 2}, overlap="difference")
    assert neurons.ranked("safety") == [("a", 0), ("a", 1), ("a", 3)]  # 1 - 0, .8 - .5, .1 - 0
    assert neurons.ranked("utility") == [
        ("a", 4),
        ("a", 2),
    ]  # .2 - 0 and .8 - .6, of which float32 makes a little less


def test_difference_and_ratio_rank_differently():
    values = scores(safety={"a": [1.0, 0.5, 0.02, 0.0]}, utility={"a": [0.6, 0.2, 0.0, 1.0]})
    difference = select(values, {"safety": 3}, overlap="difference")  # .4, .3, .02
    ratio = select(values, {"safety": 3}, overlap="ratio")  # 1.7, 2.5, .02 / .001 = 20
    assert [index for _, index in difference.ranked("safety")] == [0, 1, 2]
    assert [index for _, index in ratio.ranked("safety")] == [2, 1, 0]


@pytest.mark.parametrize("overlap", ["difference", "ratio"])
def test_a_neuron_that_two_roles_want_equally_goes_to_none(overlap):
    equal = scores(safety={"a": [2.0, 1.0]}, utility={"a": [20.0, 1.0]})
    assert select(equal, {"safety": 1}, overlap=overlap).ranked("safety") == [("a", 1)]
    with pytest.raises(ValueError, match=r"expected at most \{'utility': 0\}"):
        select(equal, {"utility": 1}, overlap=overlap)


@pytest.mark.parametrize("overlap", ["difference", "ratio"])
def test_relative_overlap_does_not_depend_on_the_unit_of_a_role(overlap):
    generator = torch.Generator().manual_seed(1)
    values = {role: {"a": torch.randn(100, generator=generator)} for role in ("safety", "utility")}
    scaled = {"safety": values["safety"], "utility": {"a": values["utility"]["a"] * 1024}}
    counts = {"safety": 20, "utility": 20}
    one, two = (select(Scores(each), counts, overlap=overlap) for each in (values, scaled))
    assert one.to_json() == two.to_json()
    assert one.jaccard(two) == 1.0


def test_layers_restricts_to_a_range_of_blocks_with_both_ends():
    neurons = select(scores(safety=DEEP), {"safety": 8}, layers=(1, 2))
    assert ranked_sites(neurons) == [2, 2, 2, 2, 1, 1, 1, 1]
    assert set(neurons.widths) == set(DEEP)
    with pytest.raises(ValueError, match="expected at most"):
        select(scores(safety=DEEP), {"safety": 9}, layers=(1, 2))


def test_layers_leaves_out_sites_without_a_number_and_refuses_a_range_without_sites():
    mixed = scores(safety={"head": [99.0], **DEEP})
    assert ranked_sites(select(mixed, {"safety": 1}, layers=(0, 9))) == [4]
    with pytest.raises(ValueError, match=r"got layers=\(7, 9\), in which no site lies; expected blocks from 0 to 4"):
        select(mixed, {"safety": 1}, layers=(7, 9))
    with pytest.raises(ValueError, match="expected sites whose names hold a block number"):
        select(ONE, {"safety": 1}, layers=(0, 1))


@pytest.mark.parametrize(
    "site",
    [
        "model.layers.3.mlp.down_proj",
        "transformer.h.11.mlp.c_proj",
        "model.layers.2.mlp.experts.7.down_proj",
        "model.language_model.layers.40.mlp.experts",
        "model.decoder.layers.0.fc2",
    ],
)
def test_block_numbers_are_those_of_layers_to_transform(site):
    number = block_number(site)
    assert in_chosen_layers(NeuronTuneConfig(layers_to_transform=[number]), site)
    assert not in_chosen_layers(NeuronTuneConfig(layers_to_transform=[number + 1]), site)


def by_family(**families: list[float]) -> Scores:
    parts = {family: {"a": torch.tensor(values)} for family, values in families.items()}
    mean = sum((part["a"] for part in parts.values()), torch.zeros(4)) / max(1, len(parts))
    return Scores(values={"safety": {"a": mean}, "utility": {"a": torch.tensor([1.0, 2, 3, 4])}}, by_family=parts)


FAMILIES = by_family(prefix=[9.0, 5.0, 4.0, 1.0], persona=[0.0, 5.0, 1.0, 4.0], role=[1.0, 5.0, 3.0, 2.0])


def test_min_agreement_keeps_what_enough_families_put_on_top():
    assert select(FAMILIES, {"safety": 2}).ranked("safety") == [("a", 1), ("a", 0)]
    assert select(FAMILIES, {"safety": 2}, min_agreement=3).ranked("safety") == [("a", 1)]
    # 0 is on top of one family, 2 of one, 3 of one, 1 of all three
    assert select(FAMILIES, {"safety": 2}, min_agreement=1).totals == {"safety": 2}
    both = select(FAMILIES, {"safety": 2, "utility": 3}, min_agreement=3, overlap="safety")
    assert both.totals == {"safety": 1, "utility": 3}


def test_min_agreement_leaves_the_counts_of_other_roles_as_they_are():
    with pytest.raises(ValueError, match=r"expected at most \{'utility': 3\}"):
        select(FAMILIES, {"safety": 1, "utility": 4}, min_agreement=2, overlap="safety")


@pytest.mark.parametrize(
    ("values", "counts", "options", "message"),
    [
        (by_family(), {"safety": 1}, {"min_agreement": 1}, "scored per family"),
        (FAMILIES, {"utility": 1}, {"min_agreement": 1}, "expected the role 'safety'"),
        (FAMILIES, {"safety": 1}, {"min_agreement": 4}, "got min_agreement=4; expected 1 to 3"),
        (FAMILIES, {"safety": 1}, {"min_agreement": 0}, "got min_agreement=0; expected 1 to 3"),
        (by_family(x=[1.0, 0, 0, 0], y=[0.0, 1, 0, 0]), {"safety": 1}, {"min_agreement": 2}, "got no neurons"),
        (ONE, {"safety": 1}, {"spread": 0.0}, "got spread=0.0; expected a share above 0"),
        (ONE, {"safety": 1}, {"spread": float("nan")}, "got spread=nan"),
        (ONE, {"safety": 1}, {"layers": (3, 1)}, r"got layers=\(3, 1\); expected \(first, last\)"),
        (ONE, {"safety": 1}, {"layers": (-1, 1)}, r"got layers=\(-1, 1\)"),
        (ONE, None, {}, "expected one of the two"),
        (ONE, {"safety": 1}, {"quantile": 0.9}, "expected one of the two"),
        (ONE, None, {"quantile": 1.0}, "got quantile .*; expected numbers from 0 to below 1"),
        (ONE, None, {"quantile": {"other": 0.5}}, "got quantile .*'other'.*roles"),
        (ONE, {"safety": 1}, {"overlap": "ratio"}, "expected two roles to compare"),
    ],
)
def test_impossible_limits_are_refused(values, counts, options, message):
    with pytest.raises(ValueError, match=message):
        select(values, counts, **options)


@pytest.mark.parametrize("share", [0.2, 0.25, 0.3, 0.5, 1.0])
def test_spread_holds_for_every_beginning_of_the_ranking(share):
    neurons = select(scores(safety=DEEP), {"safety": 15}, spread=share)
    sites = ranked_sites(neurons)
    for length in range(1, 16):
        assert max(Counter(sites[:length]).values()) <= math.ceil(share * length - 1e-9), length


def test_spread_lets_a_neuron_of_a_full_site_wait_until_there_is_room():
    crowded = scores(safety={"a": [9.0, 8.0, 7.0], "b": [1.0, 2.0, 3.0], "c": [0.5, 0.0, 0.0]})
    # one of two, two of three: 9 fills the first place, 8 waits for the third
    assert select(crowded, {"safety": 4}, spread=0.5).ranked("safety") == [("a", 0), ("b", 2), ("a", 1), ("b", 1)]
    assert select(crowded, {"safety": 4}, spread=1.0).to_json() == select(crowded, {"safety": 4}).to_json()
    with pytest.raises(ValueError, match=r"expected at most \{'safety': 5\}.*spread allow.*loosen"):
        select(crowded, {"safety": 6}, spread=0.3)


@settings(max_examples=200, deadline=None)
@given(
    sites=st.lists(st.integers(0, 4), max_size=25),
    share=st.sampled_from([0.07, 0.2, 0.25, 0.3, 0.5, 0.9, 1.0]),
    count=st.integers(0, 25),
)
def test_spread_takes_the_best_neuron_whose_site_has_room_at_every_place(sites, share, count):
    left, expected, held = list(range(len(sites))), [], Counter()
    while len(expected) < count:
        room = math.ceil(share * (len(expected) + 1) - 1e-9)
        best = next((place for place in left if held[sites[place]] < room), None)
        if best is None:
            break
        left.remove(best)
        expected.append(best)
        held[sites[best]] += 1
    assert spread_out(range(len(sites)), sites, share, count) == expected


def test_spread_finds_neurons_far_down_the_ranking():
    deep = scores(safety={"a": [float(1000 - i) for i in range(500)], "b": [1.0 / (i + 1) for i in range(500)]})
    neurons = select(deep, {"safety": 20}, spread=0.5)
    assert neurons.counts == {"safety": {"a": 10, "b": 10}}


def test_a_dropped_neuron_leaves_room_in_its_site():
    values = scores(
        safety={"a": [9.0, 8.0, 7.0], "b": [6.0, 5.0, 4.0]}, utility={"a": [9.0, 0.0, 0.0], "b": [0.0, 0.0, 1.0]}
    )
    neurons = select(values, {"safety": 3, "utility": 1}, spread=0.5)  # both want ("a", 0)
    assert neurons.ranked("safety") == [("a", 1), ("b", 0), ("a", 2)]
    assert neurons.ranked("utility") == [("b", 2)]


def test_a_quantile_keeps_what_lies_above_it():
    generator = torch.Generator().manual_seed(0)
    values = {role: {s: torch.rand(500, generator=generator) for s in "ab"} for role in ("safety", "utility")}
    one = select(Scores(values), quantile={"safety": 0.99})
    assert one.totals == {"safety": 10}
    assert one.ranked("safety") == select(Scores(values), {"safety": 10}).ranked("safety")
    limit = torch.cat(list(values["safety"].values())).quantile(0.95)
    above = {(s, i) for s in "ab" for i in (values["safety"][s] > limit).nonzero()[:, 0].tolist()}
    both = select(Scores(values), quantile=0.95, overlap="safety")
    assert both.roles == ("safety", "utility")
    assert set(both.ranked("safety")) == above


def test_what_two_roles_have_above_a_quantile_goes_to_none_and_is_not_replaced():
    values = scores(safety={"a": [9.0, 8.0, 1.0, 0.5]}, utility={"a": [9.0, 0.5, 8.0, 1.0]})
    neurons = select(values, quantile=0.5)
    assert neurons.ranked("safety") == [("a", 1)]
    assert neurons.ranked("utility") == [("a", 2)]
    with pytest.raises(ValueError, match=r"got no neurons of the roles \['utility'\]"):
        select(values, quantile=0.7, overlap="safety")


values_of_a_site = st.lists(st.integers(-4, 9).map(float), min_size=6, max_size=6)


@settings(max_examples=100, deadline=None)
@given(
    roles=st.fixed_dictionaries(
        {
            role: st.fixed_dictionaries({f"m.h.{i}.o": values_of_a_site for i in range(4)})
            for role in ("safety", "utility")
        }
    ),
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=2, unique=True).map(sorted),
    options=st.fixed_dictionaries(
        {
            "overlap": st.sampled_from(["difference", "ratio", "safety"]),
            "spread": st.sampled_from([None, 0.25, 0.3, 0.5, 1.0]),
            "per_layer": st.sampled_from([None, 2, 4]),
            "layers": st.sampled_from([None, (1, 3)]),
        }
    ),
)
def test_a_lower_count_gives_the_beginning_of_the_same_ranking(roles, counts, options):
    values = scores(**roles)
    try:
        more = select(values, {"safety": counts[1]}, **options)
    except ValueError:
        return
    less = select(values, {"safety": counts[0]}, **options)
    assert less.ranked("safety") == more.ranked("safety")[: counts[0]]


def saved_scores(tmp_path):
    path = tmp_path / "scores.safetensors"
    Scores({"safety": DEEP_TENSORS, "utility": {site: -value for site, value in DEEP_TENSORS.items()}}).save(path)
    return path


DEEP_TENSORS = {site: torch.tensor(values) - 20 for site, values in DEEP.items()}


def run_select(*words: str) -> None:
    tyro.cli(Select, args=words).run()


def test_select_writes_the_neurons_and_shows_where_they_lie(tmp_path, capsys):
    path, output = saved_scores(tmp_path), tmp_path / "neurons.json"
    run_select(str(path), "--counts", "safety=6", "utility=0.1", "--output", str(output))
    neurons = Neurons.load(output)
    assert neurons.totals == {"safety": 6, "utility": 2}
    shown = capsys.readouterr().out
    assert str(neurons) in shown
    assert neurons.histogram_text("safety") in shown
    assert str(output) in shown


def test_select_passes_its_options_on(tmp_path):
    path = saved_scores(tmp_path)
    words = ["--overlap", "difference", "--per-layer", "2", "--layers", "2", "4", "--spread", "0.5"]
    run_select(str(path), "--counts", "safety=5", *words, "--output", str(tmp_path / "n.json"))
    expected = select(Scores.load(path), {"safety": 5}, overlap="difference", per_layer=2, layers=(2, 4), spread=0.5)
    assert (tmp_path / "n.json").read_text() == expected.to_json()
    run_select(str(path), "--quantile", "0.9", "--output", str(tmp_path / "q.json"))
    assert Neurons.load(tmp_path / "q.json").totals == {"safety": 2, "utility": 2}


def test_select_never_overwrites(tmp_path):
    path, output = saved_scores(tmp_path), tmp_path / "neurons.json"
    output.write_text("mine")
    with pytest.raises(ValueError, match="which exists; expected a new file"):
        run_select(str(path), "--counts", "safety=6", "--output", str(output))
    assert output.read_text() == "mine"
    with pytest.raises(ValueError, match="got counts"):
        run_select(str(path), "--counts", "safety=600", "--output", str(tmp_path / "other.json"))
    assert not (tmp_path / "other.json").exists()


def test_an_automatic_spread_is_a_quarter_and_more_where_there_are_few_sites():
    assert [largest_share(sites) for sites in (1, 2, 4, 5, 32)] == [1.0, 0.625, 0.3125, 0.25, 0.25]
    few = Scores({"safety": {f"m.h.{i}.o": torch.arange(1.0, 101) + 1000 * (i == 0) for i in range(2)}})
    chosen = select(few, {"safety": 16}, spread="auto").histogram("safety")
    assert chosen == {"m.h.0.o": 10, "m.h.1.o": 6}
