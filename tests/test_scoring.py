"""`attribute` as a whole: families, contrasts, objectives, memory, interruptions and several processes."""

import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from safetensors import safe_open
from transformers import MixtralConfig, MixtralForCausalLM

from neurontune_peft.attribution import (
    PairedBatch,
    accumulate,
    activation_contrast,
    attribute,
    gradient,
    pooled,
    probe_weights,
)
from neurontune_peft.attribution.plan import METHODS, shortlist_of
from neurontune_peft.neurons import Scores
from neurontune_peft.objectives import RefusalMargin, response_logits, target_log_prob
from neurontune_peft.prompts import Attack, encode
from neurontune_peft.sites import find_sites

TOKENIZER = tiny_tokenizer()
PROMPTS = tiny_prompt_set()
LAST = "model.layers.1.mlp.down_proj"
MARGIN = RefusalMargin.from_texts(TOKENIZER, refusal=PROMPTS.phrases.refusal, compliance=PROMPTS.phrases.compliance)
scored = partial(attribute, tiny_llama(), TOKENIZER, PROMPTS, method="gradient")


def close(found: Scores, expected: Scores) -> None:
    torch.testing.assert_close(found.values, expected.values, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.by_family, expected.by_family, rtol=1e-5, atol=1e-5)


def mean_gradient(texts):
    part = gradient(tiny_llama(), encode(TOKENIZER, texts), find_sites(tiny_llama()), MARGIN)
    return {site: score.double().mean(dim=0) for site, score in part.items()}


# Families and contrast


def test_scores_per_family_are_those_of_its_attacked_prompts():
    scores = scored(roles=["safety"], contrast=0.0)
    harmful = PROMPTS.select(kind="harmful", split="train")
    assert list(scores.by_family) == ["prefix", "persona"]
    for turn, family in enumerate(scores.by_family):  # prompts take turns among the families
        expected = mean_gradient(PROMPTS.attacked(harmful[turn::2], family=family, split="train"))
        torch.testing.assert_close(scores.by_family[family][LAST].double(), expected[LAST], rtol=0, atol=1e-5)


def test_pooled_scores_are_the_mean_over_plain_and_attacked_prompts():
    scores = scored(roles=["safety"], contrast=0.0)
    harmful = PROMPTS.select(kind="harmful", split="train")
    texts = [p.prompt for p in harmful]
    for turn, family in enumerate(PROMPTS.train_families):
        texts += PROMPTS.attacked(harmful[turn::2], family=family, split="train")
    torch.testing.assert_close(scores.values["safety"][LAST].double(), mean_gradient(texts)[LAST], rtol=0, atol=1e-5)


def test_every_prompt_can_be_attacked_by_every_family():
    scores = scored(roles=["safety"], contrast=0.0, attacks_per_prompt=None)
    harmful = PROMPTS.select(kind="harmful", split="train")
    assert scores.metadata["prompts"] == "9 for safety"  # three, plain and under two families
    for family in scores.by_family:
        expected = mean_gradient(PROMPTS.attacked(harmful, family=family, split="train"))
        torch.testing.assert_close(scores.by_family[family][LAST].double(), expected[LAST], rtol=0, atol=1e-5)


def test_only_the_named_families_attack():
    scores = scored(roles=["safety"], families=["persona"])
    assert list(scores.by_family) == ["persona"]
    with pytest.raises(ValueError, match="got family 'role'; expected one of the train families"):
        scored(families=["role"])


def test_the_contrast_counts_in_every_family():
    plain, whole = (scored(roles=["safety"], contrast=c) for c in (0.0, 1.0))
    part = plain.values["safety"][LAST] - whole.values["safety"][LAST]
    for family in plain.by_family:
        torch.testing.assert_close(plain.by_family[family][LAST] - whole.by_family[family][LAST], part)


def test_a_contrast_per_kind_weights_the_mean_of_each_kind():
    kinds = {"harmful": 0.5, "attacked": 2.0, "borderline": 0.25, "wrapped": 1.5}
    harmful = PROMPTS.select(kind="harmful", split="train")
    attacked = [
        text
        for turn, family in enumerate(PROMPTS.train_families)
        for text in PROMPTS.attacked(harmful[turn::2], family=family, split="train")
    ]
    texts = {
        "harmful": [p.prompt for p in harmful],
        "attacked": attacked,
        "borderline": [p.prompt for p in PROMPTS.select(kind="borderline", split="train")],
        "wrapped": PROMPTS.wrapped(PROMPTS.select(kind="benign", split="train"), split="train"),
    }
    signs = {"harmful": 1, "attacked": 1, "borderline": -1, "wrapped": -1}
    expected = sum(signs[kind] * kinds[kind] * mean_gradient(texts[kind])[LAST] for kind in kinds)
    scores = scored(roles=["safety"], contrast=kinds)
    torch.testing.assert_close(scores.values["safety"][LAST].double(), expected, rtol=0, atol=2e-5)
    only = scored(roles=["safety"], contrast={"wrapped": 1.0})
    assert only.metadata["prompts"] == "9 for safety"  # borderline prompts have no weight, so they cost nothing


@pytest.mark.parametrize("contrast", [{"evil": 1.0}, {"wrapped": -1.0}, {"wrapped": float("nan")}])
def test_an_impossible_contrast_is_refused(contrast):
    with pytest.raises(ValueError, match=r"got contrast \{.*expected weights of at least 0 for"):
        scored(contrast=contrast)


def test_normalised_layers_weigh_the_same():
    plain, scores = scored(), scored(normalize="layer")
    for role in scores.roles:
        for site, score in scores.values[role].items():
            assert float(score.square().mean()) == pytest.approx(1, abs=1e-5)
            ratio = score / plain.values[role][site]
            torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-3, atol=0)
    assert scores.metadata["normalize"] == "layer"
    with pytest.raises(ValueError, match="got normalize='site'; expected None or 'layer'"):
        scored(normalize="site")


# Methods


@pytest.mark.parametrize("method", METHODS)
def test_every_method_scores_every_neuron_whatever_the_batch_size(method):
    model = tiny_llama()
    options = {"method": method, "steps": 2, "shortlist": 3, "other": tiny_llama(seed=1)}
    alone = attribute(model, TOKENIZER, PROMPTS, batch_size=1, **options)
    together = attribute(model, TOKENIZER, PROMPTS, batch_size=7, **options)
    assert alone.widths == {name: site.width for name, site in find_sites(model).items()}
    assert alone.metadata["method"] == method
    close(alone, together)


def test_effect_size_is_the_difference_of_means_by_the_pooled_deviation():
    contrast = scored(method="activation_contrast", roles=["safety"])
    effect = scored(method="effect_size", roles=["safety"], batch_size=2)
    rows = {}

    def keep(model, batch, sites, objective):
        found = activation_contrast(model, batch, sites, objective)
        rows.setdefault("all", []).append(found[LAST])
        return found

    scored(method=keep, roles=["safety"], contrast=0.0)
    positive = torch.cat(rows.pop("all"))
    scored(method=keep, roles=["safety"])
    everything = torch.cat(rows["all"])
    other = torch.stack([row for row in everything if not any(torch.allclose(row, p, atol=1e-6) for p in positive)])
    assert (len(positive), len(other)) == (6, 4)
    difference = positive.mean(0) - other.mean(0)
    torch.testing.assert_close(contrast.values["safety"][LAST], difference, rtol=0, atol=1e-5)
    squares = (positive - positive.mean(0)).square().sum(0) + (other - other.mean(0)).square().sum(0)
    torch.testing.assert_close(effect.values["safety"][LAST], difference / (squares / 8).sqrt(), rtol=1e-4, atol=1e-4)


def test_the_probe_tells_harmful_from_answered_prompts():
    model, sites = tiny_llama(), find_sites(tiny_llama())
    harmful = PROMPTS.select(kind="harmful", split="train")
    texts = [p.prompt for p in harmful]
    for turn, family in enumerate(PROMPTS.train_families):
        texts += PROMPTS.attacked(harmful[turn::2], family=family, split="train")
    others = [p.prompt for p in PROMPTS.select(kind="borderline", split="train")]
    others += PROMPTS.wrapped(PROMPTS.select(kind="benign", split="train"), split="train")
    sides = [pooled(model, encode(TOKENIZER, part), sites)[LAST] for part in (texts, others)]
    found = scored(method="probe", roles=["safety"]).values["safety"][LAST]
    torch.testing.assert_close(found, probe_weights(*sides), rtol=0, atol=1e-4)


def test_causal_tries_the_neurons_that_gradient_puts_on_top():
    scores = scored(method="causal", shortlist=4)
    for role in scores.roles:
        best = shortlist_of(scored().values[role], 4)
        for site, score in scores.values[role].items():
            assert set(score.nonzero().flatten().tolist()) == set(best.get(site, torch.empty(0)).tolist())


def test_methods_that_need_pairs_get_attacked_prompts_beside_their_plain_forms():
    seen = []

    def spy(model, batch, sites, objective):
        assert isinstance(batch, PairedBatch)
        for form in (batch, batch.plain):
            seen.append(TOKENIZER.batch_decode(form.input_ids * form.attention_mask * ~form.response_mask))
        return gradient(model, batch, sites, objective)

    scored(method=spy, pairs=True, batch_size=100)
    safety, utility = zip(*seen[:2], strict=True), zip(*seen[2:], strict=True)
    for attacked, plain in [*safety, *utility]:
        request = plain.split("<user>")[1].split("<eos>")[0]
        assert request in attacked
        assert attacked != plain
    bare = replace(PROMPTS, attacks=())
    with pytest.raises(ValueError, match="got no prompt with an attacked form to score the role 'safety'"):
        attribute(tiny_llama(), TOKENIZER, bare, method="activation_path")


def test_utility_needs_templates_where_pairs_are_needed():
    made_for_one = replace(PROMPTS, attacks=(Attack("own", "own-0", "train", None, "ht-0", "Please break a door."),))
    assert attribute(tiny_llama(), TOKENIZER, made_for_one, method="activation_path", roles=["safety"]).by_family
    with pytest.raises(ValueError, match=r"role 'utility' with a method that compares plain with attacked.*templates"):
        attribute(tiny_llama(), TOKENIZER, made_for_one, method="activation_path", roles=["utility"])


@pytest.mark.parametrize("method", ["gate_path", "wanda"])
def test_fused_experts_are_scored_with_the_rest(method):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=261, num_key_value_heads=1, num_local_experts=4, initializer_range=0.2, **sizes)
    model = MixtralForCausalLM(config).eval()
    scores = attribute(model, TOKENIZER, PROMPTS, method=method, steps=2)
    assert scores.widths == {name: site.width for name, site in find_sites(model).items()}
    assert set(scores.widths.values()) == {4 * 12}
    close(scores, attribute(model, TOKENIZER, PROMPTS, method=method, steps=2, batch_size=1))


def test_rms_change_needs_a_second_model():
    with pytest.raises(ValueError, match="got method 'rms_change' without a second model"):
        scored(method="rms_change")
    with pytest.raises(ValueError, match=r"got scores of zero at every neuron .* compare with another model"):
        scored(method="rms_change", other=tiny_llama())


# Objectives


def test_an_objective_of_the_user_scores_roles_and_makes_new_ones():
    own = scored(objective=lambda model, batch: 2 * target_log_prob(model, batch), roles=["utility"])
    usual = scored(roles=["utility"])
    torch.testing.assert_close(own.values["utility"][LAST], 2 * usual.values["utility"][LAST])
    assert "for utility" in own.metadata["objective"]
    style = scored(objective={"style": target_log_prob}, roles=["style", "utility"])
    assert style.metadata["prompts"] == "4 for style, 3 for utility"  # three benign prompts and a borderline one
    torch.testing.assert_close(style.values["utility"], usual.values["utility"], rtol=0, atol=0)


def test_an_objective_that_does_not_depend_on_the_model_is_refused():
    with pytest.raises(ValueError, match="got an objective for role 'safety' that does not depend on the model"):
        scored(objective=lambda model, batch: torch.ones(len(batch)))
    with pytest.raises(ValueError, match="that does not depend on the model"):
        scored(objective=lambda model, batch: target_log_prob(model, batch).detach(), roles=["utility"])


def test_an_objective_that_averages_over_the_batch_is_refused():
    with pytest.raises(ValueError, match=r"got \(\) from the objective; expected a tensor of shape \(3,\)"):
        scored(objective=lambda model, batch: response_logits(model, batch).mean(), roles=["utility"])


# Rows


def test_scores_do_not_depend_on_the_order_of_the_prompts():
    families = tuple(attack for attack in PROMPTS.attacks if attack.family != "persona" or attack.split == "test")
    one = tuple(attack for attack in families if attack.name != "prefix-train-1")  # which template does not turn
    there = replace(PROMPTS, attacks=one)
    back = replace(there, prompts=there.prompts[::-1])
    close(attribute(tiny_llama(), TOKENIZER, there), attribute(tiny_llama(), TOKENIZER, back))


def test_prompts_longer_than_the_context_are_shortened_and_counted_once():
    long = tuple(
        replace(p, prompt=p.prompt + " please" * 90) if p.id in ("ht-0", "bt-1") else p for p in PROMPTS.prompts
    )
    prompts = replace(PROMPTS, prompts=long)
    with pytest.warns(UserWarning, match="4 of 13 prompts longer than the context of 512 tokens") as caught:
        scores = attribute(tiny_llama(), TOKENIZER, prompts, method="gradient")
    assert len(caught) == 1
    assert all(torch.isfinite(score).all() for score in scores.values["safety"].values())
    with pytest.warns(UserWarning, match="13 of 13 prompts longer than the context of 20 tokens"):
        scored(max_length=20, roles=["safety", "utility"])


def test_a_model_that_refuses_nothing_is_told_with_its_own_openings(monkeypatch):
    said = []
    monkeypatch.setattr(
        "neurontune_peft.attribution.diagnose.logger.warning", lambda text, *args: said.append(text % args)
    )
    swapped = [PROMPTS, replace(PROMPTS, phrases=replace(PROMPTS.phrases, refusal=("Nein.",), compliance=("Sure",)))]
    margins = [scores_nothing(prompts) for prompts in swapped]
    for prompts in swapped:
        attribute(tiny_llama(), TOKENIZER, prompts, method="gradient", roles=["safety"])
    assert [bool(margin < 0) for margin in margins].count(True) == len(said) >= 1
    assert "refuses none of 3 plain harmful prompts" in said[0]
    assert "Its answers begin with '" in said[0]


def scores_nothing(prompts):
    """The highest refusal margin of the plain harmful train prompts."""
    phrases = prompts.phrases
    margin = RefusalMargin.from_texts(TOKENIZER, refusal=phrases.refusal, compliance=phrases.compliance)
    texts = [p.prompt for p in prompts.select(kind="harmful", split="train")]
    with torch.no_grad():
        return float(margin(tiny_llama(), encode(TOKENIZER, texts)).max())


# Memory


def out_of_memory_above(limit, *, later=None):
    """A method that takes at most `limit` prompts at once, and at most `later` after its first batch."""

    def method(model, batch, sites, objective):
        sizes.append(len(batch))
        if len(batch) > (later if done and later else limit):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        done.append(len(batch))
        return gradient(model, batch, sites, objective)

    sizes: list[int] = []
    done: list[int] = []
    return method, sizes, done


def test_batches_that_do_not_fit_are_halved_and_what_was_done_is_kept():
    method, sizes, done = out_of_memory_above(5, later=2)
    close(scored(method=method), scored(batch_size=1))
    assert sizes == [8, 4, 4, 2, 2, 2, 3, 1, 1, 1]  # ten prompts for safety, three for utility
    assert sum(done) == 13


def test_a_batch_size_of_the_user_is_kept_and_a_single_prompt_must_fit():
    with pytest.raises(torch.OutOfMemoryError):
        scored(method=out_of_memory_above(3)[0], batch_size=8)
    with pytest.raises(torch.OutOfMemoryError):
        scored(method=out_of_memory_above(0)[0])
    with pytest.raises(ValueError, match="got batch_size='big'; expected a positive number or 'auto'"):
        scored(batch_size="big")


# Interruptions


def stops_after(batches, stop):
    def method(model, batch, sites, objective):
        if not left:
            stop()
        left.pop()
        return gradient(model, batch, sites, objective)

    left = [None] * batches
    return method


def interrupt():
    raise KeyboardInterrupt


def same_bits(found, expected):
    torch.testing.assert_close(found.values, expected.values, rtol=0, atol=0)
    torch.testing.assert_close(found.by_family, expected.by_family, rtol=0, atol=0)


def named(function, name="own"):
    function.__qualname__ = name
    return function


def test_ctrl_c_says_how_to_go_on_and_the_same_call_ends_with_the_same_bits(tmp_path):
    call = partial(scored, batch_size=2, checkpoint=tmp_path / "state")
    with pytest.raises(
        KeyboardInterrupt, match=r"stopped after 6 prompts: the state is in .*state; make the same call"
    ):
        call(method=named(stops_after(3, interrupt)))
    second = stops_after(100, interrupt)
    counted = []
    resumed = call(method=named(lambda *args: counted.append(len(args[1])) or second(*args)))
    assert sum(counted) == 13 - 6
    same_bits(resumed, scored(method=named(stops_after(100, interrupt)), batch_size=2))
    assert not list(tmp_path.iterdir())


def test_ctrl_c_without_a_checkpoint_says_that_nothing_was_kept():
    with pytest.raises(KeyboardInterrupt, match="nothing was kept; pass checkpoint=PATH"):
        scored(method=stops_after(1, interrupt), batch_size=2)


@pytest.mark.parametrize("method", ["effect_size", "probe", "causal"])
def test_methods_with_more_state_go_on_with_the_same_bits(tmp_path, monkeypatch, method):
    call = partial(scored, method=method, batch_size=3, shortlist=2)
    whole = call()
    left = [None] * 9

    def broken(path, data):
        written(path, data)
        left.pop()
        if len(left) == 6:
            raise KeyboardInterrupt

    written = accumulate.write_atomically
    monkeypatch.setattr(accumulate, "write_atomically", broken)
    with pytest.raises(KeyboardInterrupt):
        call(checkpoint=tmp_path / "state")
    monkeypatch.setattr(accumulate, "write_atomically", written)
    same_bits(call(checkpoint=tmp_path / "state"), whole)


KILLED = """
import os, signal, sys
from test_scoring import scored, stops_after
from functools import partial
from neurontune_peft.attribution import accumulate
whole, left = accumulate.write_atomically, [None] * int(sys.argv[2])
def counted(path, data):
    whole(path, data)
    left.pop()
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
accumulate.write_atomically = counted
scored(batch_size=2, checkpoint=sys.argv[1])
"""


def test_kill_9_loses_at_most_one_batch_and_the_end_has_the_same_bits(tmp_path):
    state = tmp_path / "state"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    environment["OMP_NUM_THREADS"] = str(torch.get_num_threads())  # bits depend on how a sum is divided
    done = subprocess.run([sys.executable, "-c", KILLED, str(state), "3"], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    with safe_open(state, framework="pt") as file:
        assert '"position": 6' in file.metadata()["passes"]
    same_bits(scored(batch_size=2, checkpoint=state), scored(batch_size=2))
    assert not state.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "another steps"),
        ({"seed": 1}, "another seed"),
        ({"method": "gate_path"}, "another method"),
        ({"contrast": 0.5}, "another contrast"),
    ],
)
def test_a_checkpoint_of_other_options_is_refused(tmp_path, options, message):
    call = partial(scored, batch_size=2, checkpoint=tmp_path / "state")
    with pytest.raises(KeyboardInterrupt):
        call(method=named(stops_after(2, interrupt), "gradient"))
    with pytest.raises(ValueError, match=rf"got checkpoint '.*' of a run with {message}"):
        call(**options)
    with pytest.raises(ValueError, match="of a run with another model"):
        attribute(
            tiny_llama(seed=1), TOKENIZER, PROMPTS, method="gradient", batch_size=2, checkpoint=tmp_path / "state"
        )
    (tmp_path / "state").write_text("no state")
    with pytest.raises(ValueError, match="expected a state of `attribute`; delete it or name another"):
        call()


# Several processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def score_a_share(rank: int, port: int, directory: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    for method in ("gradient", "effect_size", "probe"):
        scored(method=method, batch_size=2).save(Path(directory, f"{method}-{rank}"))
    torch.distributed.destroy_process_group()


def test_two_processes_score_what_one_process_scores(tmp_path):
    mp.spawn(score_a_share, args=(free_port(), str(tmp_path)), nprocs=2)
    for method in ("gradient", "effect_size", "probe"):
        whole = scored(method=method)
        for rank in (0, 1):
            close(Scores.load(tmp_path / f"{method}-{rank}"), whole)
