"""Which neurons are kept: counts, ranks, ties, caps, and neurons that two roles want."""

import time

import pytest
import torch

from neurontune_peft.neurons import Scores
from neurontune_peft.selection import select


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


def test_a_thousand_of_ten_million_neurons_take_less_than_a_second():
    generator = torch.Generator().manual_seed(0)
    values = {"safety": {f"site.{i}": torch.randn(100_000, generator=generator) for i in range(100)}}
    large = Scores(values)
    start = time.process_time()  # processor time: other programs on the machine do not count
    neurons = select(large, {"safety": 1000})
    assert time.process_time() - start < 1.0
    best = torch.cat(list(values["safety"].values())).topk(1000).indices
    assert {int(site.split(".")[1]) * 100_000 + i for site, i in neurons.ranked("safety")} == set(best.tolist())
