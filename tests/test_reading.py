"""Neurons that a trigger reads are chosen together, by what each adds to the others."""

import re

import pytest
import torch
from helpers import tiny_llama, tiny_tokenizer
from peft import get_peft_model
from test_trigger_fit import attached, noise, prompt_set

from neurontune_peft import Neurons, NeuronTuneConfig, Scores, find_sites, fit_trigger, reading_scores, select
from neurontune_peft.prompts import Prompt, PromptSet
from neurontune_peft.training import reading
from neurontune_peft.training.calibration import cross_fitted
from neurontune_peft.training.features import trigger_features
from neurontune_peft.training.frames import FRAMES
from neurontune_peft.training.reading import elimination, parted, with_readers
from neurontune_peft.training.requests import examples_of


def test_a_neuron_that_says_nothing_alone_is_kept_where_it_cancels_the_noise_of_another():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 2 == 0
    noise = 5 * torch.randn(400, generator=generator)
    features = torch.randn(400, 40, 1, generator=generator)
    features[:, 7, 0] = labels.float() + noise
    features[:, 29, 0] = noise  # as often high for harmless requests as for harmful ones
    assert set(elimination(features, labels).argsort()[:2].tolist()) == {7, 29}


def test_every_neuron_has_one_place():
    features = torch.randn(50, 70, 2, generator=torch.Generator().manual_seed(0))
    places = elimination(features, torch.arange(50) % 3 == 0)
    assert sorted(places.tolist()) == list(range(70))


def test_all_neurons_are_ranked_and_the_model_is_left_as_it_was():
    model, tokenizer = tiny_llama(), tiny_tokenizer()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.lm_head.weight.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    scores = reading_scores(model, tokenizer, prompt_set())
    after = model.state_dict()
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert after.keys() == before.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    widths = {site.name: site.width for site in find_sites(model).values()}
    assert scores.widths == widths
    ranked = torch.cat(list(scores.values["safety"].values())).sort(descending=True).values
    torch.testing.assert_close(ranked, 1 / torch.arange(1, len(ranked) + 1))


def test_a_regression_on_the_first_neurons_does_better_than_on_the_last_ones():
    scores = reading_scores(tiny_llama(), tiny_tokenizer(), prompt_set())
    best = {site: part.argsort(descending=True) for site, part in scores.values["safety"].items()}
    found = {}
    for name, ends in (("first", slice(None, 4)), ("last", slice(-4, None))):
        pairs = [(site, int(i)) for site, order in best.items() for i in order[ends]]
        neurons = Neurons.from_ranked({"safety": pairs}, widths=scores.widths)
        model = get_peft_model(tiny_llama(), NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
        found[name] = fit_trigger(model, tiny_tokenizer(), prompt_set(), false_positive_budget=0.1, lowest_auc=0)
    assert found["first"].auc > found["last"].auc
    assert found["first"].detection["attacked"] > found["last"].detection["attacked"]


@pytest.mark.parametrize(
    ("counts", "share", "parts"),
    [
        ({"safety": 10}, 0.5, ({"safety": 5}, 5)),
        ({"safety": 0.1, "utility": 0.05}, 0.25, ({"safety": 8, "utility": 5}, 2)),
        ({"safety": 1}, 0.9, ({"safety": 1}, 0)),
        ({"safety": 10}, 0.0, ({"safety": 10}, 0)),
        ({"utility": 4}, 0.5, ({"utility": 4}, 0)),
    ],
)
def test_the_counts_stay_what_was_asked_for_and_one_neuron_at_least_moves_answers(counts, share, parts):
    assert parted(counts, 100, share) == parts


def test_readers_come_behind_the_neurons_that_move_answers_and_none_is_taken_twice():
    widths = {"a": 4, "b": 4}
    moving = Neurons.from_ranked({"safety": [("a", 1), ("b", 2)]}, widths=widths)
    scores = Scores(values={"safety": {"a": torch.tensor([0.2, 0.9, 0, 0]), "b": torch.tensor([0.3, 0, 0.8, 0])}})
    assert with_readers(moving, scores, 2).ranked("safety") == [("a", 1), ("b", 2), ("b", 0), ("a", 0)]
    assert with_readers(moving, scores, 0) == moving
    assert with_readers(moving, scores, 5).totals == {"safety": 4}  # no more took part


def test_a_large_model_never_asks_for_more_readers_than_take_part():
    assert parted({"safety": 0.03}, 458_752, 0.5) == ({"safety": 13_763 - 1024}, 1024)
    assert reading.MOST_READERS < reading.CANDIDATES


def test_the_half_of_the_requests_that_chose_the_readers_is_never_measured():
    examples = examples_of(prompt_set(), folds=4, seed=0, most=300)
    features = noise(len(examples))
    _, _, scores, _ = cross_fitted(examples, features, chosen_for_reading=True)
    assert scores.isnan().tolist() == [example.chooses_readers for example in examples]
    chose = {example.text for example in examples if example.chooses_readers}
    fit = fit_trigger(attached(), tiny_tokenizer(), prompt_set(), chosen_for_reading=True, false_positive_budget=0.1)
    assert not chose & {*fit.missed, *fit.flagged}
    with pytest.raises(ValueError, match="got folds=3 for neurons chosen for reading; expected an even number"):
        fit_trigger(attached(), tiny_tokenizer(), prompt_set(), chosen_for_reading=True, folds=3)


def test_reading_and_fitting_mean_the_same_half(monkeypatch):
    read: list[str] = []

    def noting(model, tokenizer, texts, **options):
        read.extend(texts)
        return trigger_features(model, tokenizer, texts, **options)

    monkeypatch.setattr(reading, "trigger_features", noting)
    reading_scores(tiny_llama(), tiny_tokenizer(), prompt_set())
    fitted = examples_of(prompt_set(), folds=4, seed=0, most=300)
    plain = {example.text: example.chooses_readers for example in fitted if example.source is None}
    assert {text for text in read if text in plain} == {text for text, chooses in plain.items() if chooses}


def test_few_requests_meet_every_frame():
    frames = [frame for own in FRAMES.values() for frame in own]
    places = range(len(frames))
    requests = [Prompt(f"r-{place}", f"<{place}>", "benign", None, "train") for place in places]
    harmful = [Prompt(f"h-{place}", f"[{place}]", "harmful", None, "train") for place in places]
    found = examples_of(PromptSet((*requests, *harmful), ()), folds=1, seed=0, most=300)
    texts = [re.sub(r"<\d+>", "{prompt}", e.text) for e in found if e.group == "framed" and not e.harmful]
    assert sorted(texts) == sorted(frames)


def test_of_a_large_model_only_the_neurons_of_largest_effect_size_take_part(monkeypatch):
    monkeypatch.setattr(reading, "CANDIDATES", 20)
    model = tiny_llama()
    scores = reading_scores(model, tiny_tokenizer(), prompt_set())
    values = torch.cat(list(scores.values["safety"].values()))
    assert int((values > 0).sum()) == 20
    assert select(scores, {"safety": 20}).total == 20
