"""One setting of an adapter's dials, measured; finished ones are kept in a journal."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peft import PeftModel

from neurontune_peft.choices import BENIGN, OVER_REFUSAL, WRAPPED
from neurontune_peft.evaluation.compare.journal import FORMAT_VERSION, Journal
from neurontune_peft.evaluation.compare.points import PLAIN, Point, outcomes_of
from neurontune_peft.evaluation.decide.frontier import Measured
from neurontune_peft.evaluation.result import Report
from neurontune_peft.tuner.fingerprint import fingerprint
from neurontune_peft.tuner.modulation import TRIGGER_FIELDS
from neurontune_peft.tuner.presets import Setting

_COLUMNS = {"plain": PLAIN, "borderline": OVER_REFUSAL, "benign": BENIGN, "wrapped_benign": WRAPPED}
_UNSCORED = "unscored "  # before the name of a column, in the journal


@dataclass(frozen=True)
class Measurer:
    """
    Measures settings of one adapter, each once.

    Args:
        model (`PeftModel`): The model; its dials are turned back after each measurement.
        adapter_name (`str`): The adapter.
        measure (`Callable`): From the model to a [`Report`] with its examples.
        held_out (`tuple[str, ...]`): Attack families that are not for training.
        journal ([`Journal`]): What is finished.
    """

    model: PeftModel
    adapter_name: str
    measure: Callable[[PeftModel], Report]
    held_out: tuple[str, ...]
    journal: Journal

    def at(self, setting: Setting) -> Measured:
        """
        Measure one setting, or take it from the journal.

        Args:
            setting ([`Setting`]): Where the dials shall stand.
        """
        key = (str(setting.as_dict()), 0, setting.strength)
        if key not in self.journal.points:
            tuner: Any = self.model.base_model
            with tuner.turned_to(setting, self.adapter_name):
                report = self.measure(self.model)
            self.journal.add(_point(key, report, self.held_out))
        return _measured(setting, self.journal.points[key])

    def each(self, settings: Iterable[Setting]) -> Iterator[Measured]:
        """Measure settings one after the other; what is not asked for is not measured."""
        for setting in settings:
            yield self.at(setting)


def journal_for(
    model: PeftModel, adapter_name: str, path: str | os.PathLike[str] | None, options: Mapping[str, Any]
) -> Journal:
    """
    The journal of an adapter's measurements.

    Args:
        model (`PeftModel`): The model.
        adapter_name (`str`): The adapter.
        path (`str` or `os.PathLike`, *optional*): JSON-lines file; nothing is written without one.
        options (`Mapping[str, Any]`): Everything else that the measurements depend on, as JSON values.

    Raises:
        ValueError: When the file belongs to another adapter or to other options.
    """
    tuner: Any = model.base_model
    layers = tuner.neuron_layers(adapter_name)
    held = ("neurontune_delta", "neurontune_index", "neurontune_rank", "neurontune_trigger")
    numbers = {
        f"{site}.{name}": getattr(layer, name)[adapter_name].detach().reshape(1, -1)
        for site, layer in layers.items()
        for name in held
        if adapter_name in getattr(layer, name)
    }
    config = tuner.peft_config[adapter_name]
    fields = tuple(name for name in TRIGGER_FIELDS if name != "trigger_threshold")  # that is part of each setting
    key = {
        "format_version": FORMAT_VERSION,
        "what": "settings of an adapter",
        "model": fingerprint(dict(model.get_base_model().named_parameters())),
        "adapter": fingerprint(numbers),
        "config": {name: getattr(config, name) for name in fields},
        **options,
    }
    return Journal(path, key)


def _point(key: tuple[str, int, float | None], report: Report, held_out: tuple[str, ...]) -> Point:
    """A report as a line of the journal; the prompts that no judge could tell about are columns of their own."""
    outcomes = outcomes_of(report, held_out)
    for example in report.examples:
        if example.group in _COLUMNS and example.label in (None, "unscored"):
            outcomes.setdefault(_UNSCORED + _COLUMNS[example.group], {})[example.id] = True
            outcomes.get(_COLUMNS[example.group], {}).pop(example.id, None)
    return Point(
        *key,
        nominal=False,
        outcomes=outcomes,
        perplexity=report.perplexity,
        kl=report.kl,
        numbers=0,
        bytes=0,
        seconds=0.0,
        peak_memory=0,
    )


def _measured(setting: Setting, point: Point) -> Measured:
    columns = {name: hits for name, hits in point.outcomes.items() if not name.startswith(_UNSCORED)}
    return Measured(
        setting.strength,
        dict(setting.counts),
        setting.threshold,
        outcomes=columns,
        unscored={
            name.removeprefix(_UNSCORED): tuple(hits)
            for name, hits in point.outcomes.items()
            if name.startswith(_UNSCORED)
        },
        perplexity=point.perplexity,
        kl=point.kl,
    )
