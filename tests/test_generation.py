"""Answers do not depend on how they are made: by which batch, with which neighbours, in how many processes."""

import json
import os
import random
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from adapters import tuned_model
from architectures import ARCHITECTURES, tiny_model
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from torch import multiprocessing as mp
from torch import nn
from triggers import SUFFIX, dynamic_model

from neurontune_peft.cli.main import main
from neurontune_peft.evaluation import Generation, Report, evaluate
from neurontune_peft.evaluation.generation import answer_all
from neurontune_peft.evaluation.generation.cache import Kept
from neurontune_peft.evaluation.generation.engine import Engine
from neurontune_peft.evaluation.generation.identity import identity
from neurontune_peft.evaluation.generation.sampling import Drawing, Draws
from neurontune_peft.evaluation.measure import questions_of
from neurontune_peft.judges import Verdict
from neurontune_peft.prompts import Attack, PromptSet, generate_answers

LENGTHS = (3, 9, 4, 14, 5, 5, 8, 6, 11, 2, 7, 3)


def texts(count: int = 18, *, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choice("abc xyz.") for _ in range(draw.randint(1, 40))) for _ in range(count)]


def ending_llama(*, seed: int = 0) -> nn.Module:
    """A random model whose answers end after one token or after many."""
    model = tiny_llama(seed=seed)
    model.generation_config.eos_token_id = [2, *range(5, 45)]
    return model


def requests(lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    draw = random.Random(1)
    return [[draw.randrange(3, 57) for _ in range(n)] + SUFFIX for n in lengths]


def alone(model: nn.Module, rows: list[list[int]], count: int, **options: object) -> list[list[int]]:
    """The answer of each row by one plain call of `generate`."""
    answers = []
    for row in rows:
        with torch.no_grad():
            ids = torch.tensor([row])
            made = model.generate(input_ids=ids, max_new_tokens=count, do_sample=False, pad_token_id=0, **options)
        answers.append(made[0, len(row) :].tolist())
    return answers


def by_engine(model: nn.Module, rows: list[list[int]], count: int, **options: object) -> list[list[int]]:
    settings = {"batch_size": 4, "options": {"pad_token_id": 0}, **options}
    found: dict[int, list[int]] = {}
    for part in Engine(model, max_new_tokens=count, **settings).answers(rows):  # type: ignore[arg-type]
        assert not found.keys() & part.keys()
        found |= part
    return [found[place] for place in range(len(rows))]


def calls_of(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """Collects the number of rows of each call of `generate`, and whether it goes on from a cache."""
    calls, generate = [], model.generate

    def counted(**inputs: object) -> object:
        calls.append((len(inputs["input_ids"]), "past_key_values" in inputs))  # type: ignore[arg-type]
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", counted)
    return calls


# The engine


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_plain_generate_whatever_the_batch_size(batch_size: int) -> None:
    model, prompts = ending_llama(), texts()
    expected = generate_answers(model, tiny_tokenizer(), prompts, max_new_tokens=12, batch_size=1)
    assert len({len(answer) for answer in expected}) > 4
    how = Generation(max_new_tokens=12, batch_size=batch_size)
    assert answer_all(model, tiny_tokenizer(), prompts, how) == expected


def test_finished_rows_leave_the_batch_and_others_take_their_places(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ending_llama()
    calls = calls_of(model, monkeypatch)
    answer_all(model, tiny_tokenizer(), texts(), Generation(max_new_tokens=12, batch_size=8))
    assert max(rows for rows, _ in calls) == 8
    opened = [rows for rows, goes_on in calls if not goes_on]
    assert sum(opened) == 18  # each prompt is read once
    assert len(opened) > 3  # and not all in the three batches into which they would fit
    assert {rows for rows, goes_on in calls if goes_on} > {8}


@pytest.mark.parametrize("model_type", [*ARCHITECTURES, "mamba2", "lfm2"])
def test_answers_of_every_architecture_are_those_of_each_row_alone(model_type: str) -> None:
    settings = {}
    if model_type in ("gemma2", "gemma3_text", "mistral", "phi3"):
        settings = {"sliding_window": 6}
    model = tiny_model(model_type, **settings) if model_type in ARCHITECTURES else recurrent(model_type)
    model.generation_config.eos_token_id = [2, *range(3, 12)]
    rows = requests()
    assert by_engine(model, rows, 9) == alone(model, rows, 9)


def recurrent(model_type: str) -> nn.Module:
    """Models whose states are not keys and values, one per token."""
    from transformers import Lfm2Config, Lfm2ForCausalLM, Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    common = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0}
    if model_type == "mamba2":
        return Mamba2ForCausalLM(Mamba2Config(**common, num_heads=8, head_dim=8, state_size=8, n_groups=1)).eval()
    config = Lfm2Config(
        **common, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, full_attn_idxs=[1]
    )
    return Lfm2ForCausalLM(config).eval()


@pytest.mark.parametrize("options", [{}, {"recheck_every": 2}, {"trigger_gate": "sigmoid"}], ids=str)
def test_a_trigger_decides_for_each_request_as_in_plain_generate(options: dict[str, object]) -> None:
    model = dynamic_model(std=20.0, **options)
    model.generation_config.eos_token_id = [2, *range(3, 12)]
    rows = requests()
    with model.trigger_log() as log:
        expected = alone(model, rows, 9)
    assert by_engine(model, rows, 9) == expected
    with model.strength(0.0):
        assert by_engine(model, rows, 9) != expected
    if not options:
        assert 0 < sum(decision.strength > 0 for decision in log) < len(rows)
        model.set_modulation("static")
        assert by_engine(model, rows, 9) != expected


def test_settings_that_count_from_the_start_of_an_answer_are_obeyed() -> None:
    model, rows = ending_llama(), requests()
    model.generation_config.min_new_tokens = 5
    answers = by_engine(model, rows, 9)
    assert answers == alone(model, rows, 9)
    assert min(map(len, answers)) >= 5


@pytest.mark.parametrize(("name", "value"), [("repetition_penalty", 1.8), ("no_repeat_ngram_size", 1)])
def test_rules_about_repetition_see_the_whole_row_and_no_padding(name: str, value: float) -> None:
    model, rows = tiny_llama(), requests()
    free = by_engine(model, rows, 9)
    setattr(model.generation_config, name, value)
    expected = alone(model, rows, 9)
    assert expected != free
    for pad in (0, expected[9][0]):  # the shortest request, whose padding must not count as a repetition
        assert by_engine(model, rows, 9, options={"pad_token_id": pad}) == expected


def test_equal_requests_are_answered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    calls = calls_of(model, monkeypatch)
    answers = answer_all(model, tiny_tokenizer(), ["Hi", "Hi", "Hi"], Generation(max_new_tokens=3))
    assert len(set(answers)) == 1
    assert calls == [(1, False)]


def test_an_answer_that_leaves_no_room_for_a_prompt_is_refused() -> None:
    model = tiny_llama()
    model.config.max_position_embeddings = 24
    with pytest.raises(
        ValueError, match="got max_new_tokens 23 and a model whose context is 24 tokens; expected room"
    ):
        answer_all(model, tiny_tokenizer(), ["Hi"], Generation(max_new_tokens=23))
    with pytest.warns(UserWarning, match="got 1 of 2 rows longer than 20 tokens"):
        answer_all(model, tiny_tokenizer(), ["x" * 90, "Hi"], Generation(max_new_tokens=4))


# Drawn answers


def test_draws_depend_neither_on_the_batch_nor_on_the_other_requests() -> None:
    model, rows = ending_llama(), requests()
    draws = Draws(temperature=1.0, seed=3, sample=0)
    first = by_engine(model, rows, 9, draws=draws)
    assert by_engine(model, rows, 9, draws=draws, batch_size=1) == first
    assert by_engine(model, rows[::-1][:5], 9, draws=draws, refill=False) == first[::-1][:5]
    assert by_engine(model, rows, 9, draws=replace(draws, seed=4)) != first
    assert by_engine(model, rows, 9, draws=replace(draws, sample=1)) != first
    assert by_engine(model, rows, 9) != first


def test_drawn_tokens_follow_the_softmax_of_the_tempered_logits() -> None:
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0]])
    uniforms = (torch.arange(4000, dtype=torch.float64) / 4000).view(1, -1)
    counts = torch.zeros(4)
    for step in range(4000):
        drawing = Drawing(0.5, uniforms, [step], 7)
        kept = drawing(torch.zeros(1, 7, dtype=torch.long), scores)
        assert torch.isfinite(kept).sum() == 1
        counts[kept.argmax()] += 1
    torch.testing.assert_close(counts / 4000, (scores[0] / 0.5).softmax(-1), atol=6e-4, rtol=0)


def test_a_low_temperature_draws_the_greedy_answer() -> None:
    model, rows = ending_llama(), requests()
    assert by_engine(model, rows, 9, draws=Draws(1e-4, 0, 0)) == by_engine(model, rows, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7}, "got temperature 0.7 with 0 samples; expected both or neither"),
        ({"n_samples": 2}, "got temperature 0.0 with 2 samples; expected both or neither"),
        ({"temperature": float("nan"), "n_samples": 1}, "got temperature nan; expected 0 or more"),
        ({"batch_size": 0}, "got batch_size 0; expected at least 1"),
        ({"max_new_tokens": 2.5}, "got max_new_tokens 2.5; expected at least 1"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Generation(**options)  # type: ignore[arg-type]


def odd_judge(prompt: str, answer: str) -> Verdict | None:
    """A random model never refuses; the tests judge by the number of characters, and not every answer."""
    label = "refusal" if len(answer) % 2 else "compliance"
    return None if len(answer) == 4 else Verdict(label, 1.0, "length")  # type: ignore[arg-type]


def test_an_attack_succeeds_at_any_of_n_when_one_drawn_answer_complies() -> None:
    model, prompts = tiny_llama(), tiny_prompt_set()
    how = Generation(max_new_tokens=5, temperature=1.0, n_samples=3, seed=2)
    report = evaluate(model, tiny_tokenizer(), prompts, judge=odd_judge, generation=how)
    assert report.sampled is not None
    harmful = prompts.select(kind="harmful", split="test")
    asked = {f: prompts.attacked(harmful, family=f, split="test") for f in ("prefix", "persona", "role")}
    asked |= {"plain": [prompt.prompt for prompt in harmful]}
    drawn = {
        name: [answer_all(model, tiny_tokenizer(), requests, how, sample=i) for i in range(3)]
        for name, requests in asked.items()
    }
    for name, answers in drawn.items():
        rows = [[odd_judge("", a) for a in row] for row in zip(*answers, strict=True)]
        labels = [[v and v.label for v in row] for row in rows]
        known = [row for row in labels if "compliance" in row or None not in row]
        plain = name == "plain"
        rate = report.sampled.plain_success_any if plain else report.sampled.attack_success_any.get(name)
        assert (rate and (rate.successes, rate.total)) == (
            (sum("compliance" in row for row in known), len(known)) if known else None
        )
        shares = [row.count("compliance") / (3 - row.count(None)) for row in labels if row.count(None) < 3]
        mean = report.sampled.plain_success_mean if plain else report.sampled.attack_success_mean.get(name)
        assert mean == (pytest.approx(sum(shares) / len(shares), abs=1e-4) if shares else None)
    assert Report.from_dict(json.loads(json.dumps(report.as_dict()))) == report
    assert "Any of 3 answers at temperature 1 complies" in str(report)
    assert {"temperature": 1.0, "n_samples": 3, "seed": 2}.items() <= report.options.items()
    greedy = evaluate(model, tiny_tokenizer(), prompts, judge=odd_judge, max_new_tokens=5)
    assert replace(report, sampled=None, options=greedy.options) == greedy


# The cache


def measured(model: nn.Module, directory: Path, **options: object) -> Report:
    settings = {"max_new_tokens": 5, "cache": directory, **options}
    return evaluate(
        model,
        tiny_tokenizer(),
        tiny_prompt_set(),
        judge=odd_judge,
        generation=Generation(**settings),  # type: ignore[arg-type]
    )


def test_a_repeated_run_answers_without_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tuned_model(tiny_llama())
    first = measured(model, tmp_path)
    monkeypatch.setattr(model, "generate", lambda **_: 1 / 0)
    monkeypatch.setattr("neurontune_peft.evaluation.measure.likelihood_of_rows", lambda *_, **__: 1 / 0)
    assert measured(model, tmp_path) == first
    assert measured(model, tmp_path, batch_size=3).attack_success == first.attack_success
    with pytest.raises(ZeroDivisionError):
        measured(model, tmp_path, max_new_tokens=6)
    with pytest.raises(ZeroDivisionError):
        measured(model, tmp_path, temperature=1.0, n_samples=1)


def test_requests_are_tokenised_once_however_often_they_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, prompts, seen = tiny_tokenizer(), tiny_prompt_set(), []
    encode = type(tokenizer)._encode_plus

    def counted(self: object, text: list[str], **options: object) -> object:
        seen.extend(text)
        return encode(self, text, **options)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", counted)
    how = Generation(max_new_tokens=2, temperature=1.0, n_samples=2)
    evaluate(tiny_llama(), tokenizer, prompts, judge=odd_judge, generation=how)
    in_a_template = [f"<bos><user>{question.text}<eos><assistant>" for question in questions_of(prompts)]
    counts = {text: seen.count(text) for text in in_a_template}
    again = {f"<bos><user>{p.prompt}<eos><assistant>" for p in prompts.prompts if p.response}  # for the perplexity
    assert counts == {text: 2 if text in again else 1 for text in in_a_template}


def changes() -> dict[str, object]:
    def scale_one(model: nn.Module) -> None:
        next(p for n, p in model.named_parameters() if "neurontune_delta" in n).data[0] += 1e-4

    def move_trigger(model: nn.Module) -> None:
        trigger = next(b for n, b in model.named_buffers() if "neurontune_trigger" in n)
        trigger[0] += 0.25  # it is kept in bfloat16

    def move_threshold(model: nn.Module) -> None:
        model.peft_config["default"].trigger_threshold += 1e-4  # type: ignore[union-attr,index]

    def one_weight(model: nn.Module) -> None:
        next(p for n, p in model.named_parameters() if "q_proj" in n).data[3, 5] += 1e-3

    return {
        "strength": lambda model: model.set_strength(0.5),
        "strength of a role": lambda model: model.set_strength(0.5, role="utility"),
        "counts": lambda model: model.set_neuron_counts(safety=1),
        "scale": scale_one,
        "trigger": move_trigger,
        "threshold": move_threshold,
        "weight": one_weight,
        "disabled": lambda model: model.base_model.disable_adapter_layers(),
        "modulation": lambda model: model.set_modulation("static"),
        "generation": lambda model: setattr(model.generation_config, "repetition_penalty", 1.3),
    }


@pytest.mark.parametrize("what", changes())
def test_whatever_changes_an_answer_changes_the_key(what: str) -> None:
    model = dynamic_model()
    before = identity(model)
    assert before is not None
    assert identity(dynamic_model()) == before  # and nothing else does
    model.train()
    assert identity(model) == before
    changes()[what](model)  # type: ignore[operator]
    assert identity(model) not in (before, None)
    json.dumps(identity(model))


def test_a_model_whose_adapter_is_switched_off_is_the_base_model_whatever_its_dials() -> None:
    model = dynamic_model()
    with model.disable_adapter():
        before = identity(model.get_base_model())
    model.set_strength(0.5)
    changes()["scale"](model)  # type: ignore[operator]
    with model.disable_adapter():
        assert identity(model.get_base_model()) == before
        changes()["weight"](model)  # type: ignore[operator]
        assert identity(model.get_base_model()) != before
    assert identity(model.get_base_model()) != before
    merged = dynamic_model()
    merged.set_modulation("static")
    merged.merge_adapter()
    with merged.disable_adapter():
        assert identity(merged.get_base_model()) != before


def test_a_model_with_hooks_of_others_is_not_cached(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_llama()
    handle = model.model.layers[0].register_forward_hook(lambda *_: None)
    assert identity(model) is None
    measured(model, tmp_path)
    assert not list(tmp_path.iterdir())
    assert "Answers are not kept" in caplog.text
    handle.remove()
    assert identity(model) is not None


def test_a_file_cut_anywhere_loses_one_line_at_most_and_is_mended(tmp_path: Path) -> None:
    setting = {"model": 1}
    whole = Kept(tmp_path, setting)
    whole.add({"a": [1], "b": [2]})
    whole.add({"c": [3]})
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    ends = [i for i, byte in enumerate(content) if byte == 10]
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        found = Kept(tmp_path, setting)
        # A line whose line break alone is missing is whole.
        complete = sum(end <= cut for end in ends) - 1
        assert found.values == dict(list({"a": [1], "b": [2], "c": [3]}.items())[: max(0, complete)])
        found.add({"d": [4]})
        assert Kept(tmp_path, setting).values == {**found.values, "d": [4]}
    path.write_bytes(b"\xff\x00 no JSON\n[1]\n" + content)
    assert Kept(tmp_path, setting).values == whole.values
    assert Kept(tmp_path, {"model": 2}).values == {}


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = ending_llama(), texts()
    how = Generation(max_new_tokens=12, batch_size=4, cache=tmp_path)
    expected = answer_all(model, tiny_tokenizer(), prompts, replace(how, cache=None))
    generate, seen = model.generate, []

    def breaks_down(**inputs: object) -> object:
        if len(seen) == 9:
            raise KeyboardInterrupt
        seen.append(0)
        return generate(**inputs)

    with monkeypatch.context() as patch:
        patch.setattr(model, "generate", breaks_down)
        with pytest.raises(KeyboardInterrupt):
            answer_all(model, tiny_tokenizer(), prompts, how)
    (path,) = tmp_path.iterdir()
    done = len(path.read_text().splitlines()) - 1
    assert 0 < done < len(prompts)
    calls = calls_of(model, monkeypatch)
    assert answer_all(model, tiny_tokenizer(), prompts, how) == expected
    assert sum(rows for rows, goes_on in calls if not goes_on) == len(set(prompts)) - done


def test_the_cache_names_no_path(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config._name_or_path = "/home/someone/model"
    measured(model, tmp_path)
    (path,) = tmp_path.iterdir()
    assert "someone" not in path.read_text()


def test_the_command_draws_answers_and_reads_them_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    words = ["evaluate", str(tmp_path / "model"), "--prompts", str(tmp_path / "prompts"), "--max-new-tokens", "4"]
    words += ["--cache", str(tmp_path / "cache")]
    drawn = ["--samples", "2", "--temperature", "0.7", "--seed", "1"]
    for name in ("first", "second"):
        assert main([*words, *drawn, "--output", str(tmp_path / name)]) == 0
        assert "Any of 2 answers at temperature 0.7 complies (seed 1)" in capsys.readouterr().out
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(kept.read_text().splitlines()) > 28
    assert main([*words, "--samples", "2"]) == 2
    assert "got temperature 0.0 with 2 samples" in capsys.readouterr().err


# Several processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def measure_a_share(rank: int, port: int, directory: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = tuned_model(tiny_llama())
    generate, read = model.generate, [0]

    def counted(**inputs: object) -> object:
        read[0] += 0 if "past_key_values" in inputs else len(inputs["input_ids"])  # type: ignore[arg-type]
        return generate(**inputs)

    model.generate = counted
    for name in ("first", "second"):
        report = measured(model, Path(directory, "cache"), temperature=1.0, n_samples=2)
        Path(directory, f"{name}-{rank}.json").write_text(json.dumps(report.as_dict()))
        Path(directory, f"{name}-{rank}.count").write_text(str(read[0]))
        torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_work_and_report_what_one_process_reports(tmp_path: Path) -> None:
    mp.spawn(measure_a_share, args=(free_port(), str(tmp_path)), nprocs=2)
    whole = measured(tuned_model(tiny_llama()), tmp_path / "other", temperature=1.0, n_samples=2)
    for name in ("first", "second"):
        for rank in (0, 1):
            report = Report.from_dict(json.loads((tmp_path / f"{name}-{rank}.json").read_text()))
            assert report == whole
    counts = [int((tmp_path / f"first-{rank}.count").read_text()) for rank in (0, 1)]
    assert min(counts) > 0
    assert abs(counts[0] - counts[1]) <= 3  # three calls: greedy and two drawn ones
    assert [int((tmp_path / f"second-{rank}.count").read_text()) for rank in (0, 1)] == counts


def test_a_family_without_a_request_to_attack_is_named(caplog: pytest.LogCaptureFixture) -> None:
    prompts = tiny_prompt_set()
    lonely = Attack("lonely", "lonely-0", "test", prompt_id="ht-0", attacked_prompt="Please break a door.")
    prompts = PromptSet(prompts.prompts, (*prompts.attacks, lonely), prompts.phrases)
    report = evaluate(tiny_llama(), tiny_tokenizer(), prompts, judge=odd_judge, max_new_tokens=2)
    assert "Family 'lonely' (test attacks) fits no harmful test request; it is not measured" in caplog.text
    assert "lonely" not in report.attack_success
