"""GGUF and Ollama exports; where llama.cpp is installed, it answers with them as the adapter does."""

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters import randomize
from exports import Case, make_case
from gguf_base import write_base_gguf
from helpers import tiny_tokenizer
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from neurontune_peft import Neurons, NeuronTuneConfig, find_sites
from neurontune_peft.export import export_adapter
from neurontune_peft.export.check import sample_requests
from neurontune_peft.export.gguf import read_gguf
from neurontune_peft.export.ollama import template_of, without_bos
from neurontune_peft.prompts.batches import prompt_ids

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed")

DEMO = Path(__file__).resolve().parents[1] / "examples" / "demo_model" / "model"
STRENGTHS = (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Case, Path]:
    """The demo model in GGUF, and an adapter that scales a tenth of its neurons by about a half."""
    directory = tmp_path_factory.mktemp("demo")
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32)
    sites = {site.name: site.width for site in find_sites(model).values()}
    ranked = [(site, index) for site, width in sites.items() for index in range(3, width, 10)]
    config = NeuronTuneConfig(task_type="CAUSAL_LM", neurons=Neurons.from_ranked({"safety": ranked}, widths=sites))
    tuned = get_peft_model(model, config)
    randomize(tuned, std=0.5)
    tuned.save_pretrained(directory / "adapter")
    return Case(DEMO, directory / "adapter"), write_base_gguf(DEMO, directory / "base.gguf")


def test_a_gguf_adapter_holds_the_lora_under_the_names_of_llama_cpp(case, tmp_path):
    made = export_adapter(case.adapter, tmp_path / "out", to="gguf")
    assert made.checks[0].weight_error <= 1e-6
    assert made.checks[0].logits.greedy == made.checks[0].logits.tokens
    reader = gguf.GGUFReader(tmp_path / "out" / "adapter.gguf")
    fields = {name: reader.get_field(name).contents() for name in ("general.architecture", "general.type")}
    assert fields == {"general.architecture": "llama", "general.type": "adapter"}
    assert reader.get_field("adapter.type").contents() == "lora"
    assert reader.get_field("adapter.lora.alpha").contents() == 5.0
    assert {tensor.name for tensor in reader.tensors} == {
        f"blk.{layer}.ffn_down.weight.lora_{part}" for layer in (0, 1) for part in "ab"
    }
    site = "model.layers.1.mlp.down_proj"
    pair = read_gguf(tmp_path / "out" / "adapter.gguf", {site: "blk.1.ffn_down.weight"})[site]
    change = case.tuned().base_model.model.get_submodule(site).get_delta_weight("default")
    assert torch.allclose(pair.b @ pair.a, change, rtol=1e-6, atol=1e-7)


def test_unknown_architectures_and_foreign_base_files_are_refused(case, tmp_path, demo):
    other = make_case(tmp_path / "olmo", "smollm3")
    export_adapter(other.adapter, tmp_path / "known", to="gguf", check="weights")
    with pytest.raises(ValueError, match=r"base GGUF whose 'blk.0.ffn_down.weight' has shape .*; expected"):
        export_adapter(case.adapter, tmp_path / "out", to="gguf", base=str(demo[1]))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\xff" * 40)
    with pytest.raises(ValueError, match="cannot be read as GGUF"):
        export_adapter(case.adapter, tmp_path / "out", to="gguf", base=str(tmp_path / "broken.gguf"))
    with pytest.raises(ValueError, match="expected float32 or float16"):
        export_adapter(case.adapter, tmp_path / "out", to="gguf", dtype="bfloat16")
    assert not list(tmp_path.glob("*out*"))


def test_a_modelfile_names_base_adapter_template_and_stops(demo, tmp_path):
    case, base = demo
    made = export_adapter(
        case.adapter, tmp_path / "out", to="ollama", model=case.base, base=str(base), check="weights"
    )
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[:2] == ["FROM ./base.gguf", "ADAPTER ./adapter.gguf"]
    assert lines[2] == (
        'TEMPLATE """<|bos|>{{ range .Messages }}{{ if eq .Role "user" }}<|user|>{{ .Content }}<|end|>'
        '{{ else if eq .Role "assistant" }}<|assistant|>{{ .Content }}<|end|>{{ end }}{{ end }}<|assistant|>"""'
    )
    assert lines[3:] == ['PARAMETER stop "<|end|>"']
    assert (tmp_path / "out" / "base.gguf").samefile(base)
    assert any("ollama create" in note for note in made.notes)


def test_the_modelfile_of_a_named_base_has_no_file_and_names_cannot_smuggle_lines(case, tmp_path):
    export_adapter(case.adapter, tmp_path / "out", to="ollama", base="llama3.2:1b", check="weights")
    text = (tmp_path / "out" / "Modelfile").read_text()
    assert text.startswith("FROM llama3.2:1b\nADAPTER ./adapter.gguf\nTEMPLATE ")
    assert "<bos>" not in text  # Ollama puts it there
    for base in ("x\nSYSTEM evil", "../base.gguf", ""):
        with pytest.raises(ValueError, match=r"correct --base"):
            export_adapter(case.adapter, tmp_path / "other", to="ollama", base=base)
        assert not list(tmp_path.glob("*other*"))


SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<s>Be kind.</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def test_a_default_system_message_is_kept_in_the_template():
    tokenizer = tiny_tokenizer(chat_template=SYSTEM)
    text = template_of(tokenizer).go_template()
    assert text.startswith("{{ if .System }}<system>{{ .System }}</>\n{{ else }}<s>Be kind.</s>{{ end }}")


def test_a_first_token_that_begins_every_turn_is_told_and_not_written():
    turns = "{% for m in messages %}{{ bos_token + '[' + m['role'] + ']' + m['content'] }}{% endfor %}"
    template = template_of(tiny_tokenizer(chat_template=turns))
    with pytest.raises(ValueError, match="begins every turn"):
        without_bos(template, "<bos>")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (None, "it has none"),
        ("{{ strftime_now('%Y') }}" + SYSTEM, "it writes the date"),
        ("{% for m in messages %}{{ loop.index0|string + m['content'] }}{% endfor %}", "more than to put fixed texts"),
        ("{% for m in messages %}{{ m['content']|upper }}{% endfor %}", "does not write every message|more than"),
        ("{% for m in messages %}{{ '{{' + m['content'] + '}}' }}{% endfor %}", "double braces"),
    ],
)
def test_templates_that_ollama_cannot_say_are_told_and_not_written(case, tmp_path, template, reason):
    with pytest.raises(ValueError, match=reason):
        template_of(tiny_tokenizer(chat_template=template))


def test_without_a_faithful_template_the_modelfile_has_none_and_says_so(tmp_path):
    case = make_case(tmp_path)
    tokenizer = tiny_tokenizer(chat_template="{{ strftime_now('%Y') }}" + SYSTEM)
    tokenizer.save_pretrained(case.base)
    made = export_adapter(case.adapter, tmp_path / "out", to="ollama", base="llama3", check="weights")
    assert "TEMPLATE" not in (tmp_path / "out" / "Modelfile").read_text()
    assert any("it writes the date" in note for note in made.notes)


# From here on with the real engine.


@pytest.fixture(scope="module")
def engine(demo: tuple[Case, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The demo model in llama.cpp with the exported adapter loaded; `dial` is what a request's `lora` scale sets."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install .[llama])")
    case, base = demo
    out = tmp_path_factory.mktemp("out") / "gguf"
    export_adapter(case.adapter, out, to="gguf", model=case.base, base=str(base), check="weights")
    llm = llama_cpp.Llama(
        str(base),
        n_ctx=512,
        n_threads=1,
        n_threads_batch=1,
        logits_all=True,
        verbose=False,
        type_k=0,
        type_v=0,
        seed=0,
    )
    adapter = llama_cpp.llama_adapter_lora_init(llm.model, str(out / "adapter.gguf").encode())
    assert adapter, "llama.cpp refused the adapter"
    adapters = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)

    def dial(scale: float) -> None:
        assert llama_cpp.llama_set_adapters_lora(llm.ctx, adapters, 1, (ctypes.c_float * 1)(scale)) == 0
        llm.reset()

    llm.dial = dial
    yield llm
    llm.close()


def engine_logits(llm: Any, ids: list[int]) -> torch.Tensor:
    llm.reset()
    llm.eval(ids)
    return torch.tensor(llm.scores[: len(ids)].copy())


def requests() -> list[list[int]]:
    return prompt_ids(AutoTokenizer.from_pretrained(DEMO), sample_requests())


@pytest.mark.parametrize("strength", STRENGTHS)
def test_llama_cpp_gives_the_adapters_logits_at_every_scale(demo, engine, strength):
    tuned = PeftModel.from_pretrained(demo[0].model(dtype=torch.float32), demo[0].adapter).eval()
    tuned.set_strength(strength)
    engine.dial(strength)
    for ids in requests():
        with torch.no_grad():
            wanted = tuned(input_ids=torch.tensor([ids])).logits[0]
        found = engine_logits(engine, ids)
        assert float((found - wanted).abs().max()) < 1e-2
        assert torch.equal(found.argmax(-1), wanted.argmax(-1))


def test_llama_cpp_turns_the_dial_far_enough_to_see(demo, engine):
    ids = requests()[0]
    found = []
    for strength in STRENGTHS:
        engine.dial(strength)
        found.append(engine_logits(engine, ids))
    assert float((found[1] - found[0]).abs().max()) > 0.1
    assert float((found[2] - found[1]).abs().max()) > 0.1


@pytest.mark.parametrize("strength", STRENGTHS)
def test_llama_cpp_writes_the_adapters_greedy_answers(demo, engine, strength):
    tuned = PeftModel.from_pretrained(demo[0].model(dtype=torch.float32), demo[0].adapter).eval()
    tuned.set_strength(strength)
    engine.dial(strength)
    for ids in requests()[:3]:
        wanted = tuned.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=16, do_sample=False
        )[0, len(ids) :].tolist()
        answer: list[int] = []
        engine.reset()
        engine.eval(ids)
        while len(answer) < 16 and (not answer or answer[-1] != 4):
            token = int(engine.scores[engine.n_tokens - 1].argmax())
            answer.append(token)
            engine.eval([token])
        assert answer == wanted


def test_llama_cpp_tokenizes_the_chat_as_transformers_does(demo, engine):
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    for request, ids in zip(sample_requests(), requests(), strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": request}], tokenize=False, add_generation_prompt=True
        )
        assert engine.tokenize(text.encode(), add_bos=False, special=True) == ids


def test_llama_cpp_refuses_the_adapter_for_another_base(demo, case, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (pip install .[llama])")
    export_adapter(case.adapter, tmp_path / "out", to="gguf", check="weights")
    llm = llama_cpp.Llama(str(demo[1]), n_ctx=32, n_threads=1, n_threads_batch=1, verbose=False)
    assert not llama_cpp.llama_adapter_lora_init(llm.model, str(tmp_path / "out" / "adapter.gguf").encode())
    llm.close()
