"""The loop: draw a task, move the deltas, keep what is good, stop when it makes no sense to go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from neurontune_peft.training.budgets import Pressure, barrier_loss, budgets_met, limits_of, step_back_, worst_excess
from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.inner import Task, Values
from neurontune_peft.training.log import StepLog, ValidationLog
from neurontune_peft.training.outer import Outer, outer_gradient, utility_of
from neurontune_peft.training.parallel import over_tasks
from neurontune_peft.training.sparsity import shrink_
from neurontune_peft.training.state import LoopState
from neurontune_peft.training.validation import Validation

WINDOW = 5  # steps over which the course of the loss is smoothed; `ours`
START_TASKS = 8  # whose losses before the first step say what is high; `ours`
Validate = Callable[[Values], Validation]
Measure = Callable[[Values], Mapping[str, float]]


def learn(
    state: LoopState,
    draw: Callable[[int], Task],
    config: MetaConfig,
    *,
    validate: Validate | None = None,
    measure: Measure | None = None,
    save: Callable[[], None] | None = None,
    track: Callable[..., None] | None = None,
    bar: Any = None,
) -> str:
    """
    Move the deltas of a state for the steps that are left.

    Args:
        state ([`LoopState`]): Where the loop stands; changed in place.
        draw (`Callable`): From a number to a [`Task`].
        config ([`MetaConfig`]): The options.
        validate (`Callable`, *optional*): From values to a [`Validation`]; called every `validation_interval` steps.
        measure (`Callable`, *optional*): From values to the costs that no step may raise above `barrier` budgets.
        save (`Callable`, *optional*): Called every `checkpoint_every` steps, and when the loop is interrupted.
        track (`Callable`, *optional*): Called after each step with `{name: number}` and `step=`.
        bar (`tqdm`, *optional*): Progress bar.

    Returns:
        `str`: Why the loop ended early; empty when all steps were made.

    Raises:
        FloatingPointError: When a loss is NaN or infinite; the deltas are those of the step before.
    """
    _begin(state, draw, config, validate, measure)
    while state.step < config.steps and not diverged(state, config):
        before = state.tensors(), state.numbers()
        try:
            advance(state, draw, config, measure=measure)
            last = state.step == config.steps
            if validate is not None and (last or state.step % config.validation_interval == 0):
                _validate(state, validate, config)
            _show(state.history[-1], track, bar)
            if save is not None and (last or state.step % config.checkpoint_every == 0):
                save()
        except KeyboardInterrupt:  # it may come in the middle of an update
            state.restore(*before)
            if save is not None:
                save()
            return f"interrupted after {state.step} of {config.steps} steps"
    return diverged(state, config)


def _begin(
    state: LoopState,
    draw: Callable[[int], Task],
    config: MetaConfig,
    validate: Validate | None,
    measure: Measure | None,
) -> None:
    """Measure where a run starts; one that goes on has done so."""
    if state.start_loss is not None:
        return
    if config.barrier and measure is not None:
        costs, limits = measure(state.shipped), limits_of(config)
        if worst_excess(costs, limits) > 0:
            raise ValueError(
                f"got deltas that already exceed a budget ({', '.join(map(str, budgets_met(config, costs)))}); "
                "expected a start within all of them for barrier=True; raise the budgets, start from a new "
                "adapter, or use barrier=False"
            )
    if validate is not None:
        _validate(state, validate, config)
    state.start_loss = highest_loss(state, draw, config)


def _show(entry: StepLog, track: Callable[..., None] | None, bar: Any) -> None:
    if track is not None:
        track(entry.numbers(), step=entry.step)
    if bar is not None:
        bar.set_postfix(safety=f"{entry.safety:.3f}", kl=f"{entry.kl:.4f}")
        bar.update()


def advance(
    state: LoopState, draw: Callable[[int], Task], config: MetaConfig, *, measure: Measure | None = None
) -> None:
    """One outer step: gradient, update, projection, and new multipliers of the budgets."""
    limits = limits_of(config)
    pressure = state.pressure if state.pressure.multipliers else Pressure.none(limits)
    weigh = partial(cost_loss, config=config, pressure=pressure, step=state.step)
    outer = over_tasks(
        lambda number: outer_gradient(state.deltas, draw(number), config, weigh), state.step, config.accumulation
    )
    utility = utility_of(outer.costs, config)
    _check_finite(outer, utility, state.step)
    start = [parameter.detach().clone() for parameter in state.deltas.parameters]
    _note_course(state, start, outer.safety + cost_weight(config) * utility)
    update(state, outer, config)
    if config.barrier and measure is not None:
        step_back_(state.deltas, start, lambda values: worst_excess(measure(values), limits) <= 0)
    if config.ema:
        state.follow(config.ema)
    entry = StepLog(
        state.step,
        outer.family,
        outer.safety,
        utility,
        outer.costs["kl"],
        outer.costs["nll"],
        inner=outer.inner,
        values={name: outer.costs[name] for name in limits},
        multipliers=pressure.multipliers,
    )
    state.history = (*state.history, entry)
    state.pressure = pressure if config.barrier else pressure.after(outer.costs, limits)
    state.step += 1


def _note_course(state: LoopState, values: list[Tensor], loss: float) -> None:
    """Remember the loss, and the values where its course was lowest: a run that diverges falls back on them."""
    state.course = (*state.course, loss)
    last = state.course[-WINDOW:]
    mean = sum(last) / len(last)
    if state.lowest is None or mean < state.lowest_mean:
        state.lowest, state.lowest_mean, state.lowest_step = values, mean, state.step


@torch.no_grad()
def highest_loss(state: LoopState, draw: Callable[[int], Task], config: MetaConfig) -> float:
    """The highest loss of the first tasks before any step: families differ, so that one alone would say little."""
    values, losses = state.deltas.parameters, []
    for number in range(START_TASKS):
        task = draw(number)
        with task.safety_at(values):
            parts = [task.query(values), *([] if task.plain is None else [config.plain_weight * task.plain(values)])]
        with (task.costs_at or task.safety_at)(values):
            costs = {name: cost.item() for name, cost in task.costs(values).items()}
        losses.append(sum(part.item() for part in parts) + cost_weight(config) * utility_of(costs, config))
    return max(losses)


def diverged(state: LoopState, config: MetaConfig) -> str:
    """Why it makes no sense to go on: the last losses are far above all at the start (*ours*); else empty."""
    if len(state.course) < WINDOW or state.start_loss is None:
        return ""
    last = sum(state.course[-WINDOW:]) / WINDOW
    if last <= 2 * state.start_loss + 1:
        return ""
    if state.kept is None:
        state.kept, state.kept_step = state.lowest, state.lowest_step
    return (
        f"diverged at step {state.step - 1} of {config.steps} (loss {last:.3g}, at most {state.start_loss:.3g} at the "
        f"start); the deltas after {state.kept_step} steps are kept; lower lr={config.lr:g}"
    )


def cost_weight(config: MetaConfig) -> float:
    """Weight of the utility term; 0 where budgets take its place."""
    return 0.0 if limits_of(config) else config.utility_weight


def cost_loss(costs: Mapping[str, Tensor], *, config: MetaConfig, pressure: Pressure, step: int) -> Tensor:
    """The costs' part of the outer loss: the weighted utility term, or what presses against exceeded budgets."""
    limits = limits_of(config)
    if not limits:
        return config.utility_weight * utility_of(costs, config)
    if config.barrier:
        return barrier_loss(costs, limits, config.barrier_weight * (1 - step / config.steps))
    return pressure.loss(costs, limits)


def update(state: LoopState, outer: Outer, config: MetaConfig) -> None:
    """Adam with a rate that falls linearly to 0, the proximal step of the L1 penalty, projection into the bounds."""
    lr = config.lr * (1 - state.step / config.steps)
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    for parameter, gradient in zip(state.deltas.parameters, outer.gradients, strict=True):
        parameter.grad = gradient
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    if config.l1:
        shrink_(state.deltas, lr * config.l1)
    state.deltas.project_()


def _validate(state: LoopState, validate: Validate, config: MetaConfig) -> None:
    """Measure the deltas and keep them if they are the best so far: within the budgets first, then by their loss."""
    values = state.shipped
    result = validate(values)
    utility, limits = utility_of(result.costs, config), limits_of(config)
    state.validations = (*state.validations, ValidationLog(state.step, result.safety, utility, result.costs))
    loss = result.safety + cost_weight(config) * utility
    state.keep(values, [max(0.0, worst_excess(result.costs, limits)), loss])


def _check_finite(outer: Outer, utility: float, step: int) -> None:
    if not outer.finite:
        raise FloatingPointError(
            f"got a loss or gradient that is NaN or infinite at step {step} (family '{outer.family}', safety "
            f"{outer.safety}, utility {utility}); expected finite numbers; lower lr, or load the model in float32"
        )
