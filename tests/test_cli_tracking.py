"""`neurontune tune --track`: the losses of each step go to a tracker of accelerate; a missing one is said first."""

import importlib.machinery
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from accelerate import tracking as accelerate_tracking
from test_cli_tune import _caches_here, call  # noqa: F401 - fixtures

from neurontune_peft.cli import tracking, tune


@pytest.fixture
def trackio(monkeypatch):
    """A stand-in for the package, which keeps what it is told."""
    module = ModuleType("trackio")
    module.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    seen = SimpleNamespace(projects=[], options={}, logged=[], finished=0)

    def finish():
        seen.finished += 1

    def init(project):
        seen.projects.append(project)
        return SimpleNamespace(log=lambda values, step: seen.logged.append((step, values)), finish=finish)

    module.init = init
    module.config = SimpleNamespace(update=lambda values, allow_val_change: seen.options.update(values))
    monkeypatch.setitem(sys.modules, "trackio", module)
    return seen


def test_every_step_of_a_run_goes_to_the_tracker(call, trackio):  # noqa: F811
    assert call("adapter", "--track", "trackio", "--rounds", "2")[0] == 0
    assert trackio.projects == ["adapter"]
    assert trackio.options["order"] == "first"
    assert isinstance(trackio.options["bounds"], str)  # trackers take plain values
    steps = [step for step, _ in trackio.logged]
    assert len(steps) == 2 * len(set(steps)) > 0
    assert {"safety", "kl"} <= set(trackio.logged[0][1])
    assert trackio.finished == 1


def test_tensorboard_writes_beside_the_output(tmp_path, monkeypatch):
    made = []

    class Stand:
        def __init__(self, name, directory):
            made.append((name, Path(directory)))
            self.log = made.append

        def start(self):
            pass

        store_init_configuration = finish = lambda self, *args: None

    monkeypatch.setattr(accelerate_tracking, "TensorBoardTracker", Stand)
    with tracking.tracked("tensorboard", tmp_path / "adapter", {}) as track:
        track("step")
    assert made == [("adapter", tmp_path / "runs"), "step"]


def test_a_failed_run_is_closed_too(tmp_path, trackio):
    with pytest.raises(RuntimeError), tracking.tracked("trackio", tmp_path / "adapter", {}):
        raise RuntimeError
    assert trackio.finished == 1


def test_without_a_tracker_nothing_is_tracked(tmp_path):
    with tracking.tracked(None, tmp_path / "adapter", {}) as track:
        assert track is None


@pytest.mark.parametrize("name", tracking.NEEDED)
def test_a_tracker_that_is_not_installed_is_refused_before_the_model_is_loaded(call, monkeypatch, capsys, name):  # noqa: F811
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    monkeypatch.setattr(tune.Tune, "load", lambda self: pytest.fail("loaded"))
    assert call("adapter", "--track", name)[0] == 2
    assert f"got --track {name}, which is not installed; expected the package" in capsys.readouterr().err
