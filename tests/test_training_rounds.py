"""Rounds: neurons that are taken already make room for others, and an adapter that grows keeps what it learnt."""

import warnings

import pytest
import torch
from adapters import tuned_model
from architectures import tiny_model, tokens
from peft import PeftModel
from training_helpers import SITES

from neurontune_peft import Neurons, Scores, select
from neurontune_peft.training import with_neurons, without

SCORES = Scores(
    values={"safety": {"a": torch.tensor([4.0, 3.0, 2.0, 1.0])}, "utility": {"a": torch.tensor([1.0, 2.0, 4.0, 3.0])}},
    by_family={"prefix": {"a": torch.tensor([4.0, 3.0, 2.0, 1.0])}},
)


def test_scores_without_neurons_rank_the_others_as_before():
    taken = Neurons.from_ranked({"safety": [("a", 0)], "utility": [("a", 2)]}, widths={"a": 4})
    rest = without(SCORES, taken)
    assert select(rest, {"safety": 2}).ranked("safety") == [("a", 1), ("a", 3)]
    assert select(rest, {"utility": 2}).ranked("utility") == [("a", 3), ("a", 1)]
    assert rest.by_family["prefix"]["a"].tolist() == [0.0, 3.0, 0.0, 1.0]
    assert SCORES.values["safety"]["a"].tolist() == [4.0, 3.0, 2.0, 1.0]


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=tokens(batch=2)).logits


def test_an_adapter_that_grows_keeps_its_deltas_and_the_new_neurons_start_at_the_identity():
    model = tuned_model()
    before, held = logits(model), model.base_model.get_neurons()
    more = Neurons.from_ranked({"safety": [(SITES[0], 30), (SITES[1], 31)]}, widths=held.widths)
    grown = with_neurons(model, held | more).eval()
    assert grown.base_model.get_neurons().totals == {
        "safety": held.totals["safety"] + 2,
        "utility": held.totals["utility"],
    }
    assert torch.equal(logits(grown), before)
    assert all(p.requires_grad for name, p in grown.named_parameters() if "neurontune_delta" in name)


def test_an_adapter_on_other_neurons_forgets_the_rest():
    model = tuned_model()
    held = model.base_model.get_neurons()
    smaller = with_neurons(model, held.head(utility=0)).eval()
    assert smaller.base_model.get_neurons().totals == {"safety": held.totals["safety"]}


def test_an_adapter_that_leaves_a_site_still_knows_its_base_model(tmp_path):
    model = tuned_model()
    held = model.base_model.get_neurons()
    first = Neurons.from_ranked({"safety": [(SITES[0], 5)]}, widths=held.widths)
    with_neurons(model, first).save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "got base model")
        PeftModel.from_pretrained(tiny_model(), tmp_path)


def test_a_model_with_two_adapters_is_refused():
    model = tuned_model()
    held = model.base_model.get_neurons()
    model.add_adapter("other", model.peft_config["default"])
    with pytest.raises(ValueError, match="delete the others first"):
        with_neurons(model, held)
