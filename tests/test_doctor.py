"""`neurontune doctor` names versions, settings and conflicts, and shows no secret."""

import json

import pytest
from huggingface_hub import constants

from neurontune_peft.cli import doctor, main


def run(capsys: pytest.CaptureFixture, *words: str) -> tuple[int, str]:
    try:
        code = main(["doctor", *words])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr().out


def test_a_sound_environment_has_no_conflict(capsys):
    code, text = run(capsys, "--json")
    found = json.loads(text)
    assert (code, found["conflicts"]) == (0, [])
    assert {"python", "torch", "peft"} <= set(found["versions"])
    assert "cpu" in found["devices"]


def test_a_version_that_is_too_old_is_a_conflict(capsys, monkeypatch):
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: "0.1.0" if name == "peft" else real(name))
    code, text = run(capsys)
    assert code == 1
    assert "got peft 0.1.0; expected peft>=0.21; pip install 'peft>=0.21'" in text


def test_no_secret_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setattr(constants, "ENDPOINT", "http://user:password@hub.example")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    _, text = run(capsys)
    assert "set (not shown)" in text
    assert "http://hub.example" in text
    for secret in ("hf_secretsecret", "password"):
        assert secret not in text


def test_xet_and_a_server_of_ones_own_are_a_conflict(capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    code, text = run(capsys)
    assert code == 1
    assert "HF_HUB_DISABLE_XET=1" in text
