"""The loop: draw a task, move the deltas, keep what is good, stop when it makes no sense to go on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from neurontune_peft.training.config import MetaConfig
from neurontune_peft.training.inner import Task, Values
from neurontune_peft.training.log import StepLog, ValidationLog
from neurontune_peft.training.outer import Outer, outer_gradient, utility_of
from neurontune_peft.training.state import LoopState
from neurontune_peft.training.validation import Validation


def learn(
    state: LoopState,
    draw: Callable[[int], Task],
    config: MetaConfig,
    *,
    validate: Callable[[Values], Validation] | None = None,
    save: Callable[[], None] | None = None,
    bar: Any = None,
) -> str:
    """
    Move the deltas of a state for the steps that are left.

    Args:
        state ([`LoopState`]): Where the loop stands; changed in place.
        draw (`Callable`): From a number to a [`Task`].
        config ([`MetaConfig`]): The options.
        validate (`Callable`, *optional*): From values to a [`Validation`]; called every `validate_every` steps.
        save (`Callable`, *optional*): Called every `checkpoint_every` steps, and when the loop is interrupted.
        bar (`tqdm`, *optional*): Progress bar.

    Returns:
        `str`: Why the loop ended early; empty when all steps were made.

    Raises:
        FloatingPointError: When a loss is NaN or infinite; the deltas are those of the step before.
    """
    if validate is not None and not state.validations:
        _validate(state, validate, config)
    while state.step < config.steps:
        before = state.tensors(), state.numbers()
        try:
            advance(state, draw, config)
            if validate is not None and (state.step % config.validate_every == 0 or state.step == config.steps):
                _validate(state, validate, config)
            if bar is not None:
                bar.set_postfix(safety=f"{state.history[-1].safety:.3f}", kl=f"{state.history[-1].kl:.4f}")
                bar.update()
            if save is not None and (state.step % config.checkpoint_every == 0 or state.step == config.steps):
                save()
        except KeyboardInterrupt:  # it may come in the middle of an update
            state.restore(*before)
            if save is not None:
                save()
            return f"interrupted after {state.step} of {config.steps} steps"
    return ""


def advance(state: LoopState, draw: Callable[[int], Task], config: MetaConfig) -> None:
    """One outer step: gradient, update, projection."""
    outer = outer_gradient(state.deltas, draw(state.step), config)
    utility = utility_of(outer.costs, config)
    _check_finite(outer, utility, state.step)
    update(state, outer, config)
    entry = StepLog(
        state.step, outer.family, outer.safety, utility, outer.costs["kl"], outer.costs["nll"], inner=outer.inner
    )
    state.history = (*state.history, entry)
    state.step += 1


def update(state: LoopState, outer: Outer, config: MetaConfig) -> None:
    """Adam with a rate that falls linearly to 0, then projection into the bounds."""
    for group in state.optimizer.param_groups:
        group["lr"] = config.lr * (1 - state.step / config.steps)
    for parameter, gradient in zip(state.deltas.parameters, outer.gradients, strict=True):
        parameter.grad = gradient
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.deltas.project_()


def _validate(state: LoopState, validate: Callable[[Values], Validation], config: MetaConfig) -> None:
    """Measure the deltas and keep them if they are the best so far."""
    values = [parameter.detach() for parameter in state.deltas.parameters]
    result = validate(values)
    utility = utility_of(result.costs, config)
    state.validations = (*state.validations, ValidationLog(state.step, result.safety, utility, result.costs))
    state.keep(values, [result.safety + config.utility_weight * utility])


def _check_finite(outer: Outer, utility: float, step: int) -> None:
    if not outer.finite:
        raise FloatingPointError(
            f"got a loss or gradient that is NaN or infinite at step {step} (family '{outer.family}', safety "
            f"{outer.safety}, utility {utility}); expected finite numbers; lower lr, or load the model in float32"
        )
