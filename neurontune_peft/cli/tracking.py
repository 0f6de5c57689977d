"""Where can a run be watched? The trackers of accelerate, asked for before anything starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

Tracker = Literal["tensorboard", "trackio"]
RUNS = "runs"  # TensorBoard's own name for a directory of runs
NEEDED = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",)}  # one of them


def check_tracker(name: str | None) -> None:
    """
    Refuse a tracker that is not installed.

    Args:
        name (`str`, *optional*): The tracker.

    Raises:
        ValueError: Says how to install it.
    """
    if name is not None and not any(find_spec(package) for package in NEEDED[name]):
        raise ValueError(
            f"got --track {name}, which is not installed; expected the package '{NEEDED[name][0]}'; pip install "
            f"{NEEDED[name][0]}, or leave --track out"
        )


@contextmanager
def tracked(name: str | None, output: Path, options: Mapping[str, Any]) -> Iterator[Callable[..., None] | None]:
    """
    A function that shows the numbers of each step in a tracker; `None` without one.

    TensorBoard's files stand beside the output, in `runs/OUTPUT`; trackio keeps its own, in the project OUTPUT.

    Args:
        name (`str`, *optional*): The tracker.
        output (`Path`): The output, whose name the run gets.
        options (`Mapping[str, Any]`): Shown beside the run; those that are no plain values are written as text.
    """
    if name is None:
        yield None
        return
    from accelerate import PartialState
    from accelerate.tracking import TensorBoardTracker, TrackioTracker

    PartialState()  # trackers ask which process they are in
    tracker = (
        TrackioTracker(output.name) if name == "trackio" else TensorBoardTracker(output.name, output.parent / RUNS)
    )
    tracker.start()
    plain = {
        key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in options.items()
    }
    tracker.store_init_configuration(plain)
    try:
        yield tracker.log
    finally:
        tracker.finish()
