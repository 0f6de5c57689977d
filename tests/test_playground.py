"""The playground: what is answered with which dials, what the terminal takes, what the page sends."""

import io
import json
import subprocess
import sys
import threading
from urllib.request import Request, urlopen

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from peft import get_peft_model

from neurontune_peft import Neurons, NeuronTuneConfig
from neurontune_peft.cli import main
from neurontune_peft.playground import Playground
from neurontune_peft.playground.terminal import Terminal
from neurontune_peft.playground.web import (
    NO_ATTACK,
    NO_PRESET,
    launch,
    layer_rows,
    neuron_rows,
    preset_values,
    respond,
)
from neurontune_peft.prompts import generate_answers
from neurontune_peft.prompts.chat import generation_suffix, turn_opening

SITES = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
ASKED = "What is 7?"


def tuned_model(*, dynamic: bool = True):
    """A tiny model with five neurons of two roles, strong enough to change its answers, and a trigger."""
    ranked = {"safety": [(SITES[0], 3), (SITES[1], 1), (SITES[1], 40)], "utility": [(SITES[0], 9), (SITES[1], 5)]}
    neurons = Neurons.from_ranked(ranked, widths=dict.fromkeys(SITES, 48))
    model = get_peft_model(tiny_llama(), NeuronTuneConfig(task_type="CAUSAL_LM", neurons=neurons))
    generator = torch.Generator().manual_seed(0)
    for layer in model.base_model.neuron_layers("default").values():
        delta = layer.neurontune_delta["default"]
        delta.data = 40 * torch.randn(delta.shape, generator=generator)
    if dynamic:
        weights = {site: torch.ones(len(layer.neurontune_index["default"])) for site, layer in held(model).items()}
        ends = {"suffix": generation_suffix(tiny_tokenizer()), "opening": turn_opening(tiny_tokenizer())}
        model.base_model.set_trigger(weights, bias=0.0, threshold=-1000.0, **ends)
    return model.eval()


def held(model):
    return model.base_model.neuron_layers("default")


def playground(**options) -> Playground:
    return Playground(tuned_model(**options), tiny_tokenizer(), tiny_prompt_set(), max_new_tokens=8)


def test_both_answers_are_those_that_evaluate_would_judge():
    play = playground()
    answered = play.answer(ASKED)
    model, tokenizer = tuned_model(), tiny_tokenizer()
    assert answered.tuned == generate_answers(model, tokenizer, [ASKED], max_new_tokens=8)[0]
    assert answered.base == generate_answers(tiny_llama(), tokenizer, [ASKED], max_new_tokens=8)[0]
    assert answered.base != answered.tuned


def test_what_is_streamed_is_the_answer():
    play, pieces = playground(), []
    answer = play.base(ASKED, pieces.append)
    assert "".join(pieces) == answer
    assert len(pieces) > 1


def test_dials_act_at_once_and_strength_0_is_the_base_model():
    play = playground()
    full = play.answer(ASKED)
    play.set_counts(safety=1, utility=0)
    fewer = play.answer(ASKED)
    play.set_strength(0.0)
    off = play.answer(ASKED)
    assert len({full.tuned, fewer.tuned, off.tuned}) == 3
    assert off.tuned == off.base == full.base
    assert play.counts == {"safety": 1, "utility": 0}
    assert play.strengths == {"safety": 0.0, "utility": 0.0}


def test_the_trigger_is_shown_against_its_threshold_and_the_threshold_is_a_dial():
    play = playground()
    answered = play.answer(ASKED)
    assert answered.trigger is not None
    assert answered.trigger.fired
    assert "above its threshold of -1000.000: strength 1" in str(answered.trigger)
    play.set_threshold(answered.trigger.score + 1)
    calm = play.answer(ASKED)
    assert calm.trigger is not None
    assert calm.trigger.score == pytest.approx(answered.trigger.score)
    assert not calm.trigger.fired
    assert calm.tuned == calm.base
    play.set_threshold(None)
    assert play.threshold == -1000.0


def test_the_neurons_that_fired_are_those_that_the_layers_saw():
    play, seen = playground(), {}

    def hook_at(site: str):
        def keep(module, args):
            seen.setdefault(site, args[0][0, -1].clone())

        return keep

    handles = [layer.register_forward_pre_hook(hook_at(site)) for site, layer in held(play.model).items()]
    play.base(ASKED)
    for handle in handles:
        handle.remove()
    neurons = play.neurons(ASKED)
    assert len(neurons) == 5
    for neuron in neurons:
        assert neuron.activation == pytest.approx(float(seen[neuron.site][neuron.index]), abs=1e-5)
    changes = [abs(neuron.change) for neuron in neurons]
    assert changes == sorted(changes, reverse=True)
    rows = layer_rows(play.answer(ASKED))
    assert [row[0] for row in rows] == ["0", "1"]
    assert max(len(row[1]) for row in rows) == 24
    play.set_counts(utility=0)
    assert all(neuron.change == 0 for neuron in play.neurons(ASKED) if neuron.role == "utility")


def test_static_adapters_have_no_threshold_and_act_on_every_request():
    play = playground(dynamic=False)
    answered = play.answer(ASKED)
    assert answered.trigger is None
    assert answered.tuned != answered.base
    with pytest.raises(ValueError, match="static modulation"):
        play.set_threshold(1.0)


def terminal(*lines: str) -> tuple[str, str, Terminal]:
    out, err = io.StringIO(), io.StringIO()
    talk = Terminal(playground(), out=out, err=err)
    talk.run(lines)
    return out.getvalue(), err.getvalue(), talk


def test_the_terminal_answers_with_the_dials_that_were_set():
    out, err, talk = terminal(ASKED, "/strength 0", "", ASKED, "/attack persona-test-0", ASKED, "/quit", "/strength 3")
    answers = [line.split("  ", 1)[-1] for line in out.splitlines() if line.startswith(("base", "tuned"))]
    play = playground()
    full, attacked = play.answer(ASKED), play.answer(ASKED, attack="persona-test-0")
    assert attacked.prompt == "Rex, What is 7?"
    assert f"base   {full.base}\ntuned  {full.tuned}\ntrigger " in out
    assert f"base   {full.base}\ntuned  {full.base}\n" in out
    assert f"base   {attacked.base}\n" in out
    assert len(answers) >= 6
    assert err == ""
    assert talk.playground.strengths == {"safety": 0.0, "utility": 0.0}  # nothing is read after /quit


def test_commands_of_the_terminal_show_what_they_did():
    out, err, talk = terminal(
        "/counts safety=2 utility=all", "/threshold -5", "/neurons", "/base", "/strength 2 safety", ASKED
    )
    assert err == ""
    assert "safety: strength 2, 2 of 3 neurons; utility: strength 1, 2 of 2 neurons; threshold -5.000" in out
    assert "base   " not in out
    assert out.count("\nneuron ") == 5
    assert "/strength X" in terminal("/help")[0]
    assert "role-test-1" in terminal("/attacks")[0].splitlines()
    assert talk.refused == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/strenght 1", "got /strenght"),
        ("/strength", "got /strength with 0 words"),
        ("/strength much", "got 'much'; expected a number"),
        ("/strength nan", "expected a finite number"),
        ("/strength 1 nobody", "got role ['nobody']"),
        ("/counts safety=9", "got safety=9; expected 0 to 3"),
        ("/counts safety", "got count 'safety'"),
        ("/threshold inf", "expected a finite number"),
        ("/attack dan", "got attack 'dan'"),
        ("/preset security", "got preset 'security'; expected one of none"),
    ],
)
def test_wrong_commands_change_nothing_and_the_chat_goes_on(line, message):
    out, err, talk = terminal("/show", line, "/show")
    assert message in err
    before, after = out.splitlines()
    assert before == after
    assert talk.refused == 1


def test_a_preset_turns_every_dial(monkeypatch):
    play = playground()
    preset = {"strength": 0.5, "counts": {"safety": 1}, "threshold": 2.0}
    monkeypatch.setattr(Playground, "presets", {"security": preset})
    play.set_counts(utility=0)
    play.use_preset("security")
    assert play.strengths == {"safety": 0.5, "utility": 0.5}
    assert play.counts == {"safety": 1, "utility": 2}
    assert play.threshold == 2.0
    assert preset_values(play, "security") == [0.5, 2.0, 1.0, 2.0]
    assert preset_values(play, NO_PRESET) == [0.5, 2.0, 1.0, 2.0]


@pytest.fixture
def saved(tmp_path):
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")
    tuned_model().save_pretrained(tmp_path / "adapter")
    given = [str(tmp_path / "model"), "--adapter", str(tmp_path / "adapter"), "--prompts", str(tmp_path / "prompts")]
    return ["chat", *given, "--max-new-tokens", "4"]


def test_lines_can_be_piped_into_the_command(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/strength 0\n{ASKED}\n"))
    assert main(saved) == 0
    shown = capsys.readouterr().out
    base, tuned = (line[7:] for line in shown.splitlines() if line.startswith(("base   ", "tuned  ")))
    assert base == tuned


def test_a_refused_command_in_a_pipe_is_wrong_use(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/nonsense\n"))
    assert main(saved) == 2
    assert "got /nonsense" in capsys.readouterr().err


def test_the_page_answers_with_the_dials_that_it_sends():
    play = playground()
    full = play.answer(ASKED)
    base, tuned, trigger, layers, neurons = respond(play, ASKED, NO_ATTACK, 1.0, -1000.0, [3, 2])
    assert (base, tuned) == (full.base, full.tuned)
    assert "above its threshold" in trigger
    assert (layers, neurons) == (layer_rows(full), neuron_rows(full))
    assert respond(play, ASKED, NO_ATTACK, 0.0, -1000.0, [3, 2])[1] == full.base
    assert respond(play, "Hi", "persona-test-0", 1.0, -1000.0, [3, 2])[0] == play.base("Rex, Hi")
    assert respond(play, " ", NO_ATTACK, 0.5, None, [1, 0]) == ("", "", "", [], [])
    assert play.strengths == {"safety": 0.5, "utility": 0.5}


@pytest.fixture
def served(saved):
    """The command in a process of its own; yields the page's address."""
    pytest.importorskip("gradio", reason="the web extra (gradio) is not installed")
    command = [sys.executable, "-m", "neurontune_peft", *saved, "--web"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    alarm = threading.Timer(240, process.kill)  # so that a page that never comes ends the test
    alarm.start()
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split(" ")[0].rstrip("/")
    finally:
        alarm.cancel()
        process.terminate()
        process.communicate(timeout=60)


def asked_of(address: str, name: str, *values: object) -> list:
    """What one of the page's functions returns."""
    body = json.dumps({"data": values}).encode()
    request = Request(f"{address}/gradio_api/call/{name}", body, {"Content-Type": "application/json"})
    with urlopen(request, timeout=60) as answer:
        event = json.load(answer)["event_id"]
    with urlopen(f"{address}/gradio_api/call/{name}/{event}", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))


def test_the_page_is_served_on_this_machine_alone_and_lets_nothing_in_from_elsewhere(served):
    assert served.startswith("http://127.0.0.1:")
    with urlopen(served, timeout=60) as answer:
        policy, text = answer.headers["Content-Security-Policy"], answer.read().decode()
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert "fonts.googleapis" not in text
    base, tuned, *_ = asked_of(served, "dial", ASKED, NO_ATTACK, 0.0, -1000.0, 3, 2)
    play = Playground(tuned_model(), tiny_tokenizer(), tiny_prompt_set(), max_new_tokens=4)
    assert base == tuned == play.base(ASKED)
    _, tuned, trigger, *_ = asked_of(served, "answer", ASKED, NO_ATTACK, 1.0, -1000.0, 3, 2)
    assert tuned == play.answer(ASKED).tuned
    assert "strength 1" in trigger


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(ValueError, match=r"pip install neurontune-peft\[web\]"):
        launch(playground(), host="127.0.0.1", port=None)
