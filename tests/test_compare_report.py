"""Tables, plot and command of a comparison."""

import sys

import pytest
import torch
from helpers import tiny_llama, tiny_prompt_set, tiny_tokenizer
from test_compare import comparison, point

from neurontune_peft.attribution import gradient
from neurontune_peft.cli.compare import Compare, parse_methods
from neurontune_peft.evaluation.compare import Comparison, Limits
from neurontune_peft.report.controls import controls_markdown, verdict
from neurontune_peft.report.pareto import pareto_plot
from neurontune_peft.training import MetaConfig


def three_methods(*, lora=0.5):
    return comparison(
        point("base", None, attack=0.9),
        point("neurontune", 0.5, attack=0.4, nominal=False),
        point("neurontune", 1.0, attack=0.1, over=0.1),
        point("lora", 0.5, attack=lora, nominal=False),
        point("lora", 1.0, attack=0.0, perplexity=12.0),
    )


def rows_of(text, title):
    part = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in lines)}


def test_tables_show_the_row_within_the_limits_beside_the_one_as_trained():
    text = controls_markdown(three_methods())
    inside, trained = rows_of(text, "Within the limits"), rows_of(text, "As trained")
    assert inside["neurontune"][:2] == ["0.5", "40.0% (10.0%–70.0%)"]
    assert trained["neurontune"][0] == "1"
    assert trained["lora"][1].startswith("0.0%")
    assert inside["lora"][-1].startswith("-10.0 points")
    assert inside["lora"][-1].endswith("1 : 0 of 10, p = 1")
    assert rows_of(text, "At equal cost")["lora"][0] == "0.0%"
    assert "chosen on these test prompts, which is optimistic" in text
    assert "rise by at most 2 points" in text


def test_a_method_without_a_setting_within_the_limits_is_shown_as_such():
    found = comparison(
        point("base", None, attack=0.9),
        point("neurontune", 1.0, attack=0.1, over=0.3),
        limits=Limits(over_refusal=0.1),
    )
    assert rows_of(controls_markdown(found), "Within the limits")["neurontune"][0] == "no setting within the limits"
    assert verdict(found) == "No setting of `neurontune` stays within the limits."


def test_the_verdict_names_the_controls_that_do_better():
    assert verdict(three_methods()).endswith("from 90.0% to 40.0%; no control gets it lower.")
    assert verdict(three_methods(lora=0.3)).endswith("lower still: `lora` (30.0%).")


def test_the_plot_has_a_line_per_method_that_begins_at_the_base_model(tmp_path):
    figure = pareto_plot(three_methods(), tmp_path / "pareto.svg")
    assert (tmp_path / "pareto.svg").read_text().startswith("<?xml")
    lines = {line.get_label(): line for line in figure.axes[0].get_lines()}
    assert list(lines["neurontune"].get_xdata()) == [0.0, 0.0, 10.0]
    assert list(lines["neurontune"].get_ydata()) == [90.0, 40.0, 10.0]
    assert {"base", "neurontune", "lora"} <= set(lines)


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"got no matplotlib; expected it for plots; install it with"):
        pareto_plot(three_methods())


@pytest.fixture
def command(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    tiny_llama().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    tiny_prompt_set().save(tmp_path / "prompts")

    def make(**options):
        given = {
            "output": tmp_path / "out",
            "prompts": str(tmp_path / "prompts"),
            "methods": ("steering",),
            "counts": ("safety=6", "utility=2"),
            "strengths": (),
            "multipliers": (),
            "coefficients": (),
            "lr_tries": 1,
            "training": MetaConfig(steps=1, inner_steps=1),
            "max_new_tokens": 2,
        }
        return Compare(str(tmp_path / "model"), **{**given, **options})

    return make


def test_the_command_writes_rows_result_tables_and_plot_and_goes_on_from_them(command, tmp_path, capsys):
    command().run()
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"rows.jsonl", "comparison.json", "comparison.md", "pareto.png"}
    found = Comparison.load(tmp_path / "out" / "comparison.json")
    assert found.methods == ("base", "steering")
    assert "Within the limits" in (tmp_path / "out" / "comparison.md").read_text()
    assert f"Comparison: {tmp_path / 'out'}" in capsys.readouterr().out
    command(methods=("steering", "neurontune")).run()
    again = Comparison.load(tmp_path / "out" / "comparison.json")
    assert again.points[: len(found.points)] == found.points
    assert again.methods == (*found.methods, "neurontune")


def test_the_command_refuses_a_directory_with_other_files(command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match=r"got output .* with other files; expected a new directory"):
        command().run()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_functions_are_named_by_module_and_name():
    assert parse_methods(("lora", "mine=neurontune_peft.attribution:gradient")) == {"lora": "lora", "mine": gradient}
    for word in ("mine=nowhere:gradient", "mine=neurontune_peft.attribution:nothing", "mine="):
        with pytest.raises(ValueError, match=rf"got method '{word}' .*; expected a name or NAME=MODULE:FUNCTION"):
            parse_methods((word,))


def test_a_steered_block_may_return_a_tuple():
    from neurontune_peft.evaluation.compare.steering import steered

    class Block(torch.nn.Module):
        def forward(self, hidden):
            return hidden, "cache"

    model = torch.nn.ModuleDict({"block": Block()})
    with steered(model, "block", torch.ones(2), 2.0):
        moved, rest = model["block"](torch.zeros(1, 1, 2))
    assert (moved.tolist(), rest) == ([[[2.0, 2.0]]], "cache")
