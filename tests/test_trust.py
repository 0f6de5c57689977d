"""The trust report: planted neurons are believed, random ones are not, and the model is left as it was."""

import copy
import json
import math
from dataclasses import replace

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import get_peft_model
from transformers import MixtralConfig, MixtralForCausalLM

from neurontune_peft import NeuronTuneConfig
from neurontune_peft.attribution import attribute
from neurontune_peft.cli.verify import Verify
from neurontune_peft.evaluation.trust import Intervention, Trained, TrainingPlan, Trust, trainability, verify
from neurontune_peft.evaluation.trust.held_out import held_out, refusal_margin
from neurontune_peft.neurons import Neurons, Scores
from neurontune_peft.prompts import encode
from neurontune_peft.report.plots import plot_curves, plot_interventions, plot_scores
from neurontune_peft.report.trust import trust_markdown

TOKENIZER, PROMPTS = tiny_tokenizer(), tiny_prompt_set()
SITES = tuple(f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1))
WIDTHS = dict.fromkeys(SITES, 48)
PLANTED = (5, 17, 23, 31, 40)
QUICK = {"methods": (), "steps": 0, "n_detailed": 0, "max_new_tokens": 2, "n_splits": 2}
PLAN = TrainingPlan(shares=(0.05,), steps=2, max_new_tokens=2)


def listed(pairs, *, role="safety", widths=WIDTHS):
    return Neurons.from_ranked({role: pairs}, widths=widths)


PLANTED_LIST = listed([(SITES[1], index) for index in PLANTED])
RANDOM_LIST = listed([(SITES[1], index) for index in (2, 11, 20, 36, 44)])


def planted_model():
    """A tiny model in which five neurons of the last layer write refusals, and all others hardly anything."""
    model, margin = tiny_llama(), refusal_margin(TOKENIZER, PROMPTS, None)
    unembedding = model.lm_head.weight.data
    means = [
        unembedding[torch.tensor([i for ids in openings for i in ids])].mean(0)
        for openings in (margin.refusal_ids, margin.compliance_ids)
    ]
    direction = (means[0] - means[1]) / (means[0] - means[1]).norm()
    for layer in model.model.layers:
        layer.mlp.down_proj.weight.data *= 0.01
    mlp = model.model.layers[1].mlp
    for neuron in PLANTED:
        mlp.down_proj.weight.data[:, neuron] = direction
        mlp.up_proj.weight.data[neuron] = mlp.gate_proj.weight.data[neuron]  # silu(z) * z is never negative
    return model


def check(model=None, neurons=PLANTED_LIST, **options):
    return verify(planted_model() if model is None else model, TOKENIZER, neurons, PROMPTS, **QUICK | options)


def row(scale, change, random):
    return Intervention(scale, change, change, change, tuple(random))


@pytest.fixture(scope="module")
def planted():
    return check()


def test_planted_neurons_are_better_than_random_at_every_scale(planted):
    trust = planted
    assert trust.better_than_random
    assert [row.scale for row in trust.causality] == [0.0, 1.5, 2.0]
    assert all(row.beats_random and row.percentile == 100 for row in trust.causality)
    down, up, further = (row.change for row in trust.causality)
    assert down < 0 < up < further
    assert trust.causality[1].low <= up <= trust.causality[1].high
    assert "are better than random ones of the same layers" in trust.conclusion
    assert "\n" not in trust.conclusion
    assert "(reached by none of 20 random sets)" in trust.conclusion


def test_a_random_list_is_not_better_than_random():
    trust = check(neurons=RANDOM_LIST)
    assert not trust.better_than_random
    assert "are not shown to be better than random" in trust.conclusion


def test_neurons_that_hinder_refusals_are_not_better_than_random():
    model = planted_model()
    model.model.layers[1].mlp.down_proj.weight.data[:, list(PLANTED)] *= -1
    trust = check(model)
    assert not trust.better_than_random
    assert all(row.effect < 0 and row.percentile == 0 for row in trust.causality)


def test_an_intervention_equals_scaling_the_columns_of_the_weight():
    model, scale = tiny_llama(), 1.5
    trust = check(tiny_llama(), RANDOM_LIST, scales=(scale,), n_phrases=None)
    margin = refusal_margin(TOKENIZER, PROMPTS, None)
    harmful = PROMPTS.select(kind="harmful", split="test")
    batch = encode(TOKENIZER, PROMPTS.attacked(harmful, family="role", split="test"))
    by_hand = []
    for number in (None, 0, 19):
        chosen = RANDOM_LIST
        if number is not None:
            chosen = RANDOM_LIST.layer_matched_random(trainability.random_seed(0, number))
        changed = copy.deepcopy(model)
        changed.model.layers[1].mlp.down_proj.weight.data[:, chosen.indices["safety"][SITES[1]]] *= scale
        with torch.no_grad():
            by_hand.append(float((margin(changed, batch) - margin(model, batch)).mean()))
    found = trust.causality[0]
    assert [found.change, found.random[0], found.random[19]] == pytest.approx(by_hand, rel=1e-4, abs=1e-6)
    assert len({round(change, 9) for change in found.random}) == 20


def test_scale_1_changes_nothing():
    trust = check(scales=(1.0,), n_detailed=1)
    (found,) = trust.causality
    assert (found.change, found.low, found.high, found.wrapped_change, found.kl) == (0, 0, 0, 0, 0)
    assert set(found.random) == {0.0}
    assert found.random_kl == (0.0,)
    assert found.perplexity == found.random_perplexity[0]
    assert not trust.better_than_random


def test_only_held_out_prompts_and_families_are_measured():
    tests = held_out(
        tiny_llama(),
        TOKENIZER,
        PROMPTS,
        role="safety",
        n_prompts=2,
        n_phrases=1,
        batch_size=8,
        seed=0,
        chat_template=None,
    )
    held = {template.template for template in PROMPTS.templates(split="test", families=["role"])}
    made = {t.replace("{prompt}", p.prompt) for t in held for p in PROMPTS.select(kind="harmful", split="test")}
    assert tests.families == ("role",)
    assert len(tests.attacked) == tests.count == 2
    assert set(tests.attacked) <= made
    assert len(tests.objective.refusal_ids) == 1


def state(model):
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    return tensors, flags, {name: (id(module), module.training) for name, module in model.named_modules()}


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert list(before[0]) == list(after[0])
    assert all(torch.equal(tensor, after[0][name]) for name, tensor in before[0].items())


def refuses_to_judge(prompt, answer):
    raise RuntimeError("no opinion")


def test_the_model_is_restored_bit_for_bit_also_after_an_exception():
    model = planted_model().train()
    model.model.layers[0].eval()
    model.lm_head.weight.requires_grad_(False)
    before = state(model)
    check(model, methods=("gradient",), steps=2, trainability=PLAN)
    assert_same(before, state(model))
    with pytest.raises(RuntimeError, match="no opinion"):
        check(model, judge=refuses_to_judge)
    assert_same(before, state(model))
    assert check(model).better_than_random  # and nothing is in the way of a second call


def test_the_same_seed_gives_the_same_report_and_another_seed_other_random_sets():
    full = {"methods": ("gradient", "random"), "n_splits": 1, "n_detailed": 1}
    first, second, other = check(**full), check(**full), check(**full, seed=1)
    assert first == second
    assert first.causality[0].random != other.causality[0].random


def test_a_report_survives_json_and_markdown(tmp_path):
    trust = check(methods=("gradient", "random"), steps=4, n_detailed=2, trainability=PLAN)
    trust.save(tmp_path / "trust.json")
    assert Trust.load(tmp_path / "trust.json") == trust
    content = json.loads((tmp_path / "trust.json").read_text())
    assert content["better_than_random"] is True
    assert content["conclusion"] == trust.conclusion
    shown = trust_markdown(trust)
    assert trust.conclusion in shown
    for title in ("Causality", "side effects", "Stability", "Completeness", "Effect against count", "Trainability"):
        assert title in shown
    assert "format only" in shown
    assert str(trust).startswith(trust.conclusion)
    assert len(trust.causality[0].random_refusal) == len(trust.causality[0].random_kl) == 2
    content["format_version"] = 99
    with pytest.raises(ValueError, match="got format_version 99 in the trust report"):
        Trust.from_dict(content)
    (tmp_path / "trust.json").write_text("[]")
    with pytest.raises(ValueError, match="without a JSON object; expected what Trust"):
        Trust.load(tmp_path / "trust.json")


@pytest.mark.parametrize(
    ("found", "percentile", "p", "beats"),
    [
        (row(2.0, 1.0, [0.0] * 20), 100, 1 / 21, True),
        (row(2.0, 1.0, [0.0] * 19 + [1.0]), 95, 2 / 21, False),
        (row(2.0, 1.0, [0.0] * 38 + [2.0]), 100 * 38 / 39, 2 / 40, True),
        (row(0.0, -1.0, [0.0] * 20), 100, 1 / 21, True),
        (row(0.0, 1.0, [2.0] * 20), 100, 1 / 21, False),  # a lesser harm than the random sets' is no effect
    ],
)
def test_a_list_beats_random_only_where_at_most_one_in_twenty_reaches_it(found, percentile, p, beats):
    assert found.percentile == pytest.approx(percentile)
    assert found.p_value == pytest.approx(p)
    assert found.beats_random is beats


def test_every_amplifying_scale_has_to_beat_random(planted):
    trust = planted
    first, second, third = trust.causality
    lost = replace(second, random=(9.0,) * 20)
    assert not replace(trust, causality=(first, lost, third)).better_than_random
    assert replace(trust, causality=(replace(first, random=(-9.0,) * 20), second, third)).better_than_random


def test_scores_of_a_path_add_up_within_two_percent_at_32_steps():
    path, further, across = check(tiny_llama(), steps=32).completeness
    assert (path.method, further.method) == ("gate_path 0 to 1", "gate_path 1 to 2")
    assert across.method == "activation_path, plain to attacked"
    assert max(path.gap, further.gap, across.gap) < 0.02
    assert path.total == pytest.approx(path.change, rel=0.05)
    assert check(tiny_llama(), steps=1).completeness[0].gap > 0.02


def test_overlaps_tell_steady_rankings_from_random_ones():
    trust = check(methods=("random", "gradient"))
    overlaps = {(row.kind, row.second): row.jaccard for row in trust.stability}
    assert overlaps["list", "gradient"] > 0.4 > overlaps["list", "random"]
    assert overlaps["methods", "gradient"] < 0.3
    assert overlaps["halves", "random, half 2"] == 1.0  # random scores do not look at prompts
    assert overlaps["seeds", "random, seed 1"] < 0.3
    assert [row.kind for row in trust.stability].count("seeds") == 2
    assert trust.chance_overlap == pytest.approx((5 / 96) / (2 - 5 / 96))
    control, gradient = trust.curves
    assert gradient.counts == control.counts == (1, 3, 12)
    assert gradient.changes[1] > max(control.changes)


def test_given_scores_stand_for_their_method():
    ideal = {SITES[0]: torch.zeros(48), SITES[1]: torch.zeros(48).index_fill(0, torch.tensor(PLANTED), 1.0)}
    trust = check(scores=Scores({"safety": ideal}, {"method": "gradient"}), methods=("gradient",), n_splits=1)
    assert {row.second: row.jaccard for row in trust.stability if row.kind == "list"} == {"gradient": 1.0}
    assert trust.curves[0].counts == (1, 3)  # no more than five have a positive score
    named = check(scores=Scores({"safety": ideal}, {"method": "gradient"}), methods=None, n_splits=1)
    assert [curve.method for curve in named.curves] == ["gradient", "gate_path", "random"]


def test_utility_neurons_are_measured_on_benign_answers_and_decided_by_suppression():
    neurons = listed([(SITES[1], index) for index in PLANTED], role="utility")
    trust = check(neurons=neurons, role="utility")
    assert trust.objective == "log-probability of answers"
    assert [row.scale for row in trust.deciding] == [0.0]
    assert (trust.n_prompts, trust.families, trust.base_refusal) == (3, (), None)


def test_trainings_measure_list_methods_and_controls_on_held_out_families():
    rows = check(methods=("gradient",), trainability=replace(PLAN, n_random=2)).trainability
    assert [(row.method, row.control) for row in rows] == [(m, c) for m in ("list", "gradient") for c in (0, 1, 2)]
    assert {row.count for row in rows} == {5}
    assert all(0 <= row.attack_success <= 1 and row.wrapped_benign_refusal is not None for row in rows)
    assert len({row.kl for row in rows}) > 1
    assert rows[0].kl > 0


def test_a_training_is_compared_with_its_own_random_sets(planted):
    def trained(method, control, success):
        return Trained(method, 0.03, 9, control, success, 0.1, 0.2, 3.0, 0.01)

    rows = (
        trained("list", 0, 0.2),
        *(trained("list", n, rate) for n, rate in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.5))),
    )
    trust = replace(planted, trainability=(*rows, trained("snip", 0, 0.0)))
    assert trust.training_percentile(rows[0]) == 50
    assert trust.training_percentile(trust.trainability[-1]) is None
    assert "| list | 3.0% | 9 | 20.0% (27.5%) | 50 of 4 |" in trust_markdown(trust)
    assert "list, 9 neurons (3.0%): 20.0%, random 27.5%" in str(trust)


def test_finished_trainings_are_not_repeated(tmp_path, monkeypatch):
    plan = replace(PLAN, rows=tmp_path / "rows.json")
    first = check(methods=("gradient",), trainability=plan).trainability
    monkeypatch.setattr(trainability, "meta_train", refuses_to_judge)
    assert check(methods=("gradient",), trainability=plan).trainability == first
    with pytest.raises(TypeError):  # other options are other rows
        check(methods=("gradient",), trainability=replace(plan, steps=3))
    (tmp_path / "rows.json").write_text("{}")
    with pytest.raises(ValueError, match="expected a file of finished trainings; delete it or name another one"):
        check(methods=("gradient",), trainability=plan)


def test_random_neurons_match_the_list_at_every_site_without_sharing_any():
    neurons = listed([(SITES[0], 3), *((SITES[1], index) for index in range(20))])
    first, again, other = (neurons.layer_matched_random(seed) for seed in (0, 0, 1))
    assert first.counts == neurons.counts
    assert not set(first.ranked("safety")) & set(neurons.ranked("safety"))
    assert first.ranked("safety") == again.ranked("safety") != other.ranked("safety")
    most = listed([(SITES[1], index) for index in range(40)])
    drawn = set(most.layer_matched_random(0).ranked("safety"))
    assert {(SITES[1], index) for index in range(40, 48)} <= drawn
    assert len(drawn) == 40


def test_fused_experts_are_verified_too():
    settings = {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    settings |= {"num_key_value_heads": 2, "num_local_experts": 4, "max_position_embeddings": 512}
    torch.manual_seed(0)
    model = MixtralForCausalLM(MixtralConfig(vocab_size=261, **settings)).eval()
    site = "model.layers.1.mlp.experts"
    trust = check(model, listed([(site, 3), (site, 40)], widths={site: 96}))
    assert len(trust.causality[0].random) == 20
    assert trust.causality[2].change != 0


BAD = [
    ({"n_random": 19}, "got n_random=19; expected at least 20"),
    ({"scales": (1.5, 1.5)}, r"got scales \(1.5, 1.5\); expected different finite numbers"),
    ({"scales": (math.nan,)}, "expected different finite numbers"),
    ({"n_detailed": -1}, "got n_detailed=-1"),
    ({"role": "utility"}, r"got role 'utility'; expected one with neurons, of \{'safety': 5\}"),
    (
        {"neurons": listed([("model.layers.7.mlp.down_proj", 1)], widths={"model.layers.7.mlp.down_proj": 48})},
        "no such site",
    ),
    ({"neurons": listed([(SITES[0], 60)], widths={SITES[0]: 64})}, "which has 48 neurons there"),
    ({"scores": Scores({"safety": {SITES[0]: torch.ones(48)}})}, "got scores and neurons that differ at"),
    ({"scores": Scores({"utility": {SITES[0]: torch.ones(48)}})}, "expected 'safety' among them"),
    ({"trainability": PLAN, "methods": ("nonsense",)}, "got method 'nonsense'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_input_is_refused_and_changes_nothing(options, message):
    model = tiny_llama()
    before = state(model)
    with pytest.raises(ValueError, match=message):
        check(model, **options)
    assert_same(before, state(model))


def test_prompt_sets_without_held_out_attacks_and_models_with_adapters_are_refused():
    known = tuple(attack for attack in PROMPTS.attacks if attack.family != "role")
    for prompts in (replace(PROMPTS, attacks=known), replace(PROMPTS, prompts=PROMPTS.select(split="train"))):
        with pytest.raises(ValueError, match=r"held-out families .* expected at least one of each"):
            verify(tiny_llama(), TOKENIZER, PLANTED_LIST, prompts, **QUICK)
    tuned = get_peft_model(tiny_llama(), NeuronTuneConfig(task_type="CAUSAL_LM", neurons=PLANTED_LIST))
    with pytest.raises(ValueError, match="got a model with adapters; expected one without"):
        check(tuned)
    with pytest.raises(ValueError, match=r"got shares \(2,\)"):
        TrainingPlan(shares=(2,))


def test_pictures_show_every_layer_method_and_scale(tmp_path, planted):
    scores = attribute(planted_model(), TOKENIZER, PROMPTS, method="gradient")
    trust = check(methods=("gradient", "random"))
    by_layer = plot_scores(scores, neurons=PLANTED_LIST)
    assert [label.get_text() for label in by_layer.axes[-1].get_xticklabels()] == ["0", "1"]
    assert [bar.get_height() for bar in by_layer.axes[1].patches] == [0, 5]
    lines = {line.get_label(): list(line.get_ydata()) for line in plot_curves(trust).axes[0].get_lines()}
    assert lines["gradient"] == list(trust.curves[0].changes)
    assert [t.get_text() for t in plot_interventions(trust).axes[0].get_xticklabels()] == ["0", "1.5", "2"]
    by_layer.savefig(tmp_path / "scores.png")
    assert (tmp_path / "scores.png").stat().st_size > 1000
    with pytest.raises(ValueError, match="got role 'style'"):
        plot_scores(scores, role="style")
    with pytest.raises(ValueError, match="got a report without curves"):
        plot_curves(planted)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    planted_model().save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    PROMPTS.save(tmp_path / "prompts")
    PLANTED_LIST.save(tmp_path / "planted.json")
    RANDOM_LIST.save(tmp_path / "random.json")
    attribute(planted_model(), TOKENIZER, PROMPTS, method="gradient").save(tmp_path / "scores.safetensors")
    return tmp_path


def command(files, neurons, **options):
    options = {"max_new_tokens": 2, "methods": ("random",), **options}
    return Verify(
        model=str(files / "model"),
        neurons=files / neurons,
        prompts=str(files / "prompts"),
        output=files / "out",
        **options,
    )


def test_the_command_writes_report_and_pictures(files, capsys):
    command(files, "planted.json", scores=files / "scores.safetensors").run()
    names = {path.name for path in (files / "out").iterdir()}
    pictures = {"interventions.png", "effect_by_count.png", "scores_by_layer.png"}
    assert names == {"trust.json", "trust.md", *pictures}
    trust = Trust.load(files / "out" / "trust.json")
    assert trust.better_than_random
    assert trust.conclusion in capsys.readouterr().out
    with pytest.raises(ValueError, match="which is not empty"):
        command(files, "planted.json").run()


def test_the_command_exits_with_1_when_a_list_is_not_better_than_random(files, capsys):
    with pytest.raises(SystemExit, match="1"):
        command(files, "random.json").run()
    assert not Trust.load(files / "out" / "trust.json").better_than_random
    assert "are not shown to be better than random" in capsys.readouterr().out


def test_the_command_does_without_matplotlib(files, capsys, monkeypatch):
    monkeypatch.setattr("neurontune_peft.cli.verify.find_spec", lambda name: None)
    command(files, "planted.json").run()
    assert {path.name for path in (files / "out").iterdir()} == {"trust.json", "trust.md"}
    assert "matplotlib is not installed" in capsys.readouterr().err
