"""Meta-learning where it provably helps, on a problem whose answers can be written down."""

import pytest
import torch
from training_helpers import toy_deltas

from neurontune_peft.training import MetaConfig, loop
from neurontune_peft.training.inner import Task, inner_step
from neurontune_peft.training.state import LoopState

# Families agree on the first number, 1, and differ in the second, by offset; one is steeper than the other.
FAMILIES = {"steep": (-1.0, 10.0), "flat": (1.0, 1.0)}
INNER = {"inner_steps": 5, "inner_lr": 0.15, "support_weight": 0.0}  # steps of length 0.15 * sqrt(2): a reach of 1.06


def family_loss(offset, curvature):
    optimum = torch.tensor([1.0, offset])
    return lambda values: curvature * (values[0] - optimum).square().sum() / 2


def start_learnt_by(order):
    """Where training over the two families ends up."""
    deltas = toy_deltas(torch.zeros(2))
    config = MetaConfig(order=order, steps=400, lr=0.05, **INNER)
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters, lr=config.lr))

    def draw(number):
        name = list(FAMILIES)[number % 2]
        loss = family_loss(*FAMILIES[name])
        return Task(name, loss, loss, lambda values: {"kl": values[0].sum() * 0, "nll": values[0].sum() * 0})

    loop.learn(state, draw, config)
    return deltas.parameters[0].detach()


def after_adapting(start, loss):
    """Loss of a new family after the inner steps."""
    deltas, values = toy_deltas(start), [start.clone().requires_grad_()]
    for _ in range(INNER["inner_steps"]):
        gradients = torch.autograd.grad(loss(values), values)
        values = inner_step(deltas, values, gradients, INNER["inner_lr"], keep_graph=False)
    return loss(values).item()


@pytest.mark.parametrize("order", ["first", "second"])
def test_meta_learning_beats_joint_training_on_families_it_never_saw(order):
    joint, meta = start_learnt_by("none"), start_learnt_by(order)
    # Joint training ends at the mean weighted by curvature; from there the flat family is out of reach.
    torch.testing.assert_close(joint, torch.tensor([1.0, -9 / 11]), atol=0.05, rtol=0)
    # Meta-learning ends where the inner steps reach both, but for one step's length.
    reach = 6 * 0.15 * 2**0.5
    assert all((meta - torch.tensor([1.0, offset])).norm() < reach for offset, _ in FAMILIES.values())
    assert (joint - torch.tensor([1.0, 1.0])).norm() > reach
    for offset in (0.8, 1.0):
        unseen = family_loss(offset, 1.0)
        assert after_adapting(meta, unseen) < after_adapting(joint, unseen) / 3


def test_joint_training_is_as_good_where_families_agree():
    """The control of the test above: nothing to gain without an offset."""
    deltas = toy_deltas(torch.tensor([1.0, 0.0]))
    loss = family_loss(0.0, 1.0)
    task = Task("toy", loss, loss, lambda values: {"kl": values[0].sum() * 0, "nll": values[0].sum() * 0})
    state = LoopState(deltas, torch.optim.Adam(deltas.parameters, lr=0.05))
    loop.learn(state, lambda number: task, MetaConfig(order="none", steps=50, lr=0.05, **INNER))
    torch.testing.assert_close(deltas.parameters[0].detach(), torch.tensor([1.0, 0.0]))
