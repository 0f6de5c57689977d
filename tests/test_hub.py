"""Adapters go up to a Hub and come back, through PEFT's and huggingface_hub's own code and over HTTP."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from adapters import tuned_model
from architectures import tiny_model, tokens
from hub_client import Client, environment
from hub_reports import fake_reports
from hub_server import HubServer, card_errors, running_hub
from huggingface_hub import ModelCard

from neurontune_peft.cli import main
from neurontune_peft.hub.push import published_files
from neurontune_peft.report import Document

OWN = {"README.md", "adapter_config.json", "adapter_model.safetensors"}
LOAD = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
name, base, ids, target, revision = args
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), name, revision=revision or None).eval()
torch.save(model(torch.tensor(eval(ids))).logits, target)
"""


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with running_hub() as server:
        yield server


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(hub: HubServer, home: Path) -> Iterator[Client]:
    found = Client(hub.url, home)
    yield found
    found.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(directory)
    return directory


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A saved adapter with a report beside it, and with files that are nobody's business."""
    directory = tmp_path / "adapter"
    tuned_model().save_pretrained(directory)
    before, after = fake_reports()
    (directory / "report.json").write_text(json.dumps(Document(before, after).as_dict()))
    (directory / "log.json").write_text("{}")
    (directory / ".env").write_text("HF_TOKEN=hf_right")
    (directory / "training-1.safetensors").write_bytes(b"state")
    return directory


@pytest.fixture(autouse=True)
def forget(hub: HubServer) -> None:
    hub.faults.clear()
    hub.log.clear()


def push(client: Client, adapter: Path, name: str, *more: str, **options: str | None):
    return client.cli("push", str(adapter), name, "--base-model", "alice/base", *more, **options)


def logits(client: Client, name: str, base: Path, target: Path, revision: str = "") -> torch.Tensor:
    done = client.run(LOAD, name, str(base), str(tokens().tolist()), str(target), revision)
    assert done.code == 0, done.err
    return torch.load(target)


def texts_under(*places: Path) -> str:
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return "".join(path.read_bytes().decode("utf-8", errors="ignore") for path in files)


def test_a_published_adapter_loads_in_a_fresh_process_with_the_same_logits(hub, client, adapter, base, tmp_path):
    done = push(client, adapter, "alice/one", "--license", "apache-2.0")
    assert done.code == 0, done.err
    assert done.out.startswith(f"Published: {hub.url}/alice/one/commit/")
    files = hub.repositories["alice/one"].files()
    assert set(files) == OWN | {".gitattributes"}
    assert files["adapter_model.safetensors"] == (adapter / "adapter_model.safetensors").read_bytes()
    assert len(hub.repositories["alice/one"].commits) == 2  # the empty one, and ours
    expected = tuned_model().eval()(tokens()).logits
    assert torch.equal(logits(client, "alice/one", base, tmp_path / "logits.pt"), expected)


def test_the_token_goes_to_the_hub_alone_and_into_no_file_or_message(hub, client, adapter, home, base, tmp_path):
    done = push(client, adapter, "alice/two")
    logits(client, "alice/two", base, tmp_path / "logits.pt")
    assert "hf_right" not in done.out + done.err
    assert set(hub.sent_to_storage) == {None}
    (adapter / ".env").unlink()
    assert "hf_right" not in texts_under(home, adapter)
    assert b"hf_right" not in b"".join(hub.repositories["alice/two"].files().values())


AUTO = """
import neurontune_peft
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM
name, base = args
try:
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), name) if base else (
        AutoPeftModelForCausalLM.from_pretrained(name)
    )
except ValueError as error:
    print("refused:", error)
else:
    print("loaded")
"""


@pytest.mark.parametrize("auto", [True, False], ids=["AutoPeftModel", "PeftModel"])
def test_a_file_that_was_damaged_on_the_hub_is_refused_the_first_time_and_every_time(hub, client, adapter, base, auto):
    name = f"alice/damaged-{auto}"
    push(client, adapter, name)
    repository = hub.repositories[name]
    config = json.loads(repository.files()["adapter_config.json"]) | {"base_model_name_or_path": str(base)}
    repository.commit("main", {"adapter_config.json": json.dumps(config).encode()})
    data = bytearray(repository.files()["adapter_model.safetensors"])
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    place = next(values["data_offsets"][0] for key, values in header.items() if key.endswith(".neurontune_delta"))
    data[start + place] ^= 1  # the last bit of a scale, which no other check can tell from a scale that was learnt
    whole = repository.branches["main"]
    repository.commit("main", {"adapter_model.safetensors": bytes(data)})
    for _ in range(2):
        done = client.run(AUTO, name, "" if auto else str(base))
        assert done.out.startswith("refused: got 'adapter_model.safetensors' whose tensors have"), done.err
    repository.branches["main"] = whole
    assert client.run(AUTO, name, "" if auto else str(base)).out == "loaded\n"


def test_what_was_downloaded_is_used_without_a_connection(hub, client, adapter, home, base, tmp_path):
    push(client, adapter, "alice/cached")
    online = logits(client, "alice/cached", base, tmp_path / "online.pt")
    code = f"import neurontune_peft, sys; args = sys.argv[1:]\n{LOAD}\nfrom neurontune_peft.cli import main\n"
    code += "raise SystemExit(main(['inspect', name]))"
    words = ["alice/cached", str(base), str(tokens().tolist()), str(tmp_path / "offline.pt"), ""]
    env = environment("http://127.0.0.1:9", home, HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "offline.pt"), online)
    assert "base model   alice/base" in done.stdout


def test_a_new_version_does_not_change_a_pinned_one(hub, client, adapter, base, tmp_path):
    push(client, adapter, "alice/versions")
    first = hub.repositories["alice/versions"].branches["main"]
    old = logits(client, "alice/versions", base, tmp_path / "old.pt")
    changed = tuned_model()
    for name, parameter in changed.named_parameters():
        if "delta" in name:
            parameter.data.add_(0.25)
    changed.save_pretrained(adapter)
    push(client, adapter, "alice/versions")
    new = logits(client, "alice/versions", base, tmp_path / "new.pt")
    assert not torch.equal(new, old)
    assert torch.equal(logits(client, "alice/versions", base, tmp_path / "pinned.pt", revision=first), old)
    done = client.cli("diff", "alice/versions", "alice/versions", "--revisions", first, "main")
    assert "largest changes of scales" in done.out


def test_a_branch_is_made_for_a_revision_and_main_stays(hub, client, adapter):
    done = push(client, adapter, "alice/branch", "--revision", "trial")
    assert done.code == 0, done.err
    assert set(hub.repositories["alice/branch"].files("main")) == {".gitattributes"}
    assert set(hub.repositories["alice/branch"].files("trial")) >= OWN
    assert client.cli("inspect", "alice/branch", "--revision", "trial").code == 0


@pytest.mark.parametrize(
    ("pattern", "status"), [("PUT /storage", 403), ("POST .*/commit/", 0), ("POST .*/commit/", 500)]
)
def test_an_upload_that_is_cut_publishes_nothing(hub, client, adapter, pattern, status):
    push(client, adapter, "alice/cut")
    before = dict(hub.repositories["alice/cut"].branches)
    changed = tuned_model()
    next(p for n, p in changed.named_parameters() if "delta" in n).data.add_(status + len(pattern))
    changed.save_pretrained(adapter)
    hub.fail(pattern, status)
    done = push(client, adapter, "alice/cut")
    assert done.code == 2
    assert "all of this version or nothing of it" in done.err
    assert "Traceback" not in done.err
    assert hub.repositories["alice/cut"].branches == before


def test_an_upload_that_breaks_off_once_is_tried_again(hub, client, adapter):
    hub.fail("PUT /storage", 0)
    changed = tuned_model()
    next(p for n, p in changed.named_parameters() if "delta" in n).data.mul_(3)
    changed.save_pretrained(adapter)
    done = push(client, adapter, "alice/again")
    assert done.code == 0, done.err
    assert set(hub.repositories["alice/again"].files()) >= OWN


@pytest.mark.parametrize("pattern", ["POST /api/repos/create", "POST .*/commit/"])
def test_a_rate_limit_is_waited_for(hub, client, adapter, pattern):
    hub.fail(pattern, 429, Retry_After="0")
    done = push(client, adapter, f"alice/limited-{len(pattern)}")
    assert done.code == 0, done.err
    assert "asks to wait" in done.err


def test_a_long_rate_limit_is_an_error_that_says_how_long(hub, client, adapter):
    hub.fail("POST /api/repos/create", 429, times=9, Retry_After="3600")
    done = push(client, adapter, "alice/limited")
    assert done.code == 2
    assert "too many requests" in done.err
    assert "3600 seconds" in done.err


def test_a_server_error_is_named_as_such(hub, client, adapter):
    hub.fail("POST /api/repos/create", 500)
    done = push(client, adapter, "alice/broken")
    assert done.code == 2
    assert "server error" in done.err
    assert "alice/broken" not in hub.repositories


def test_a_wrong_token_gives_a_message_without_the_token(hub, client, adapter, home):
    for command in (["push", str(adapter), "alice/x", "--base-model", "alice/base"], ["inspect", "alice/x"]):
        done = client.cli(*command, token="hf_wrongwrong")
        assert done.code == 2
        assert "does not accept (401)" in done.err
        assert "hf auth login" in done.err
        assert "hf_wrongwrong" not in done.out + done.err + texts_under(home)
        assert "Traceback" not in done.err


def test_a_token_without_the_right_is_told_from_a_wrong_one(hub, client, adapter):
    push(client, adapter, "alice/hers")
    done = push(client, adapter, "alice/hers", token="hf_other")
    assert done.code == 2
    assert "without the right" in done.err


def test_a_private_adapter_needs_a_token_and_a_missing_one_reads_the_same(hub, client, adapter):
    assert push(client, adapter, "alice/private", "--private").code == 0
    assert hub.repositories["alice/private"].private
    for name, token in (("alice/private", None), ("alice/private", "hf_other"), ("alice/nothing", "hf_right")):
        done = client.cli("inspect", name, token=token)
        assert done.code == 2
        assert "does not exist, or it is private" in done.err
    assert client.cli("inspect", "alice/private").code == 0


def test_nothing_private_goes_into_a_repository_that_is_public(hub, client, adapter):
    push(client, adapter, "alice/public")
    commits = len(hub.repositories["alice/public"].commits)
    done = push(client, adapter, "alice/public", "--private")
    assert done.code == 2
    assert "a public repository; expected a private one" in done.err
    assert len(hub.repositories["alice/public"].commits) == commits


def test_a_revision_that_does_not_exist_is_named(hub, client, adapter):
    push(client, adapter, "alice/revision")
    done = client.cli("inspect", "alice/revision", "--revision", "v9")
    assert done.code == 2
    assert "got a revision that 'alice/revision' does not have" in done.err


def test_a_file_beyond_all_bounds_is_not_downloaded(hub, client, adapter):
    push(client, adapter, "alice/huge")
    hub.repositories["alice/huge"].commit("main", {"adapter_config.json": b" " * 17_000_000})
    hub.log.clear()
    done = client.cli("inspect", "alice/huge")
    assert done.code == 2
    assert "of 17,000,000 bytes" in done.err
    assert not [request for request in hub.log if request.startswith("GET") and "/resolve/" in request]


def test_the_audit_of_a_repository_sees_files_that_are_not_downloaded(hub, client, adapter):
    push(client, adapter, "alice/pickled")
    assert client.cli("audit", "alice/pickled", "--bounds", "-3", "6").code == 0
    hub.repositories["alice/pickled"].commit("main", {"adapter_model.bin": b"\x80", "../run.py": b"1"})
    hub.log.clear()
    done = client.cli("audit", "alice/pickled", "--json", "--bounds", "-3", "6")
    assert done.code == 1
    dangers = [f["text"] for f in json.loads(done.out)["findings"] if f["level"] == "danger"]
    assert len(dangers) == 2
    assert not [request for request in hub.log if request.endswith((".bin", ".py"))]


def test_peft_publishes_by_itself_and_the_card_of_an_earlier_push_stays(hub, client, adapter, base, tmp_path):
    push(client, adapter, "alice/by-peft")
    code = """
import huggingface_hub, neurontune_peft
from peft import PeftModel
from transformers import AutoModelForCausalLM
huggingface_hub.constants.HF_HUB_DISABLE_XET = True  # what the variable of that name sets
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(args[0]), args[1])
model.push_to_hub("alice/by-peft", commit_message="again")
model.push_to_hub("alice/new-by-peft", private=True)
"""
    done = client.run(code, str(base), str(adapter))
    assert done.code == 0, done.err
    assert b"import neurontune_peft" in hub.repositories["alice/by-peft"].files()["README.md"]
    assert hub.repositories["alice/new-by-peft"].private
    expected = tuned_model().eval()(tokens()).logits
    assert torch.equal(logits(client, "alice/new-by-peft", base, tmp_path / "logits.pt"), expected)


def test_the_card_carries_its_evaluation_as_the_parser_of_the_hub_reads_it(adapter):
    before, after = fake_reports()
    text = published_files(adapter, "alice/card", license="apache-2.0", base_model="alice/base")["README.md"].decode()
    card = ModelCard(text)
    assert card_errors(text) == []
    assert card.data.library_name == "peft"
    assert card.data.base_model == "alice/base"
    assert card.data.license == "apache-2.0"
    assert {"neurontune", "base_model:adapter:alice/base"} <= set(card.data.tags)
    found = {result.metric_name: result for result in card.data.eval_results}
    held_out = found["attack success, role (held out)"]
    assert held_out.metric_value == round(after.attack_success["role"].rate, 4)
    assert held_out.metric_args["base_model"] == round(before.attack_success["role"].rate, 4)
    assert held_out.metric_args["n"] == after.attack_success["role"].total
    assert held_out.metric_args["low"] < held_out.metric_value < held_out.metric_args["high"]
    assert found["perplexity of benign answers"].metric_value == after.perplexity
    code = text.partition("```python\n")[2]
    assert code.startswith("import neurontune_peft")
    for part in ("role (held out)", "(judge: ", "Limits and misuse", "## Licence", "safety"):
        assert part in text
    assert len(text) < 30_000


def test_presets_and_the_command_of_a_report_stand_on_the_card_and_in_the_configuration(adapter):
    before, after = fake_reports()
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    point = {"strength": 1.5, "counts": {"safety": 4}, "threshold": 0.25, "attack_success": rate, "over_refusal": rate}
    report = Document(before, after).as_dict() | {
        "frontier": {"points": [point, point], "presets": {"balanced": 1}},
        "certificate": {"statement": "Over-refusal is below 5 % with confidence 95 %."},
        "command": "neurontune tune /models/base --output /tmp/x/adapter --counts safety=6",
    }
    (adapter / "report.json").write_text(json.dumps(report))
    files = published_files(adapter, "alice/card", base_model="alice/base")
    text = files["README.md"].decode()
    assert "| balanced | 1.5 | safety 4 | 0.250 |" in text
    assert "confidence 95 %" in text
    assert "neurontune tune alice/base --output adapter --counts safety=6" in text
    config = json.loads(files["adapter_config.json"])
    assert config["provenance"]["presets"]["balanced"]["strength"] == 1.5
    assert files["frontier.png"].startswith(b"\x89PNG")
    assert "![" in text


@pytest.mark.parametrize(
    "provenance", [{"metrics": "x"}, {"presets": [1]}, {"selection": {"counts": 3}, "training": {}}]
)
def test_odd_provenance_stops_neither_inspect_nor_card(adapter, capsys, provenance):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"provenance": provenance}))
    (adapter / "report.json").unlink()
    assert main(["inspect", str(adapter)]) == 0
    assert "not measured" in capsys.readouterr().out
    assert b"Its effect was not measured." in published_files(adapter, "alice/x", base_model="a/b")["README.md"]


def test_a_local_base_model_is_not_published(adapter, tmp_path):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "model")}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pass --base-model"):
        published_files(adapter, "alice/x")
    assert str(tmp_path).encode() not in b"".join(published_files(adapter, "alice/x", base_model="a/b").values())


@pytest.mark.parametrize("secret", ["hf_" + "a" * 34, "/home/alice/models/x", "C:\\Users\\alice\\x"])
def test_a_secret_in_the_configuration_is_not_published(adapter, secret):
    path = adapter / "adapter_config.json"
    config = json.loads(path.read_text()) | {"provenance": {"note": secret}}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"access token|local path") as error:
        published_files(adapter, "alice/x", base_model="a/b")
    assert "hf_aaa" not in str(error.value)


def test_a_damaged_adapter_is_not_published(hub, client, adapter):
    with (adapter / "adapter_model.safetensors").open("r+b") as stream:
        stream.truncate(100)
    done = push(client, adapter, "alice/damaged")
    assert done.code == 2
    assert "cannot be read" in done.err
    assert hub.log == []


def test_a_dry_run_sends_nothing(hub, client, adapter):
    done = push(client, adapter, "alice/dry", "--dry-run")
    assert done.code == 0, done.err
    assert "adapter_model.safetensors: " in done.out
    assert hub.log == []


# PEFT looks for the base model's configuration, to see whether its vocabulary was changed.
@pytest.mark.filterwarnings("ignore:Could not find a config file")
def test_the_card_that_peft_writes_says_import_and_no_local_path(tmp_path):
    base = tiny_model()
    base.config._name_or_path = base.name_or_path = str(tmp_path / "models" / "base")
    model = tuned_model(base)
    for _ in range(2):  # a second save changes nothing
        model.save_pretrained(tmp_path / "adapter")
    text = (tmp_path / "adapter" / "README.md").read_text()
    assert text.count("import neurontune_peft") == 1
    assert str(tmp_path) not in text
    assert "- PEFT " in text
    assert ModelCard(text).data.library_name == "peft"


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_saved_files_follow_the_umask(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        tuned_model().save_pretrained(tmp_path)
    finally:
        os.umask(before)
    for name in OWN:
        assert (tmp_path / name).stat().st_mode & 0o777 == mode, name
