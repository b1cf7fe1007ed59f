"""Check of the state of a loss: its buffers depend on the pairs of a step, not on how these were divided."""

import copy

import torch
from torch import Tensor

from plo.losses import Loss
from plo.pairs import Pairs
from plo.verify.check import NOT_APPLICABLE, Check, verdict
from plo.verify.inputs import make_pairs, make_statistics, per_pair, rows

ROUNDING = 1e-12  # relative, in float64: sums in another order differ by less
STEPS = 3
PARTS = ((0, 1, 2, 3),), ((2,), (0,), (3,), (1,)), ((3, 1), (2, 0))  # divisions of four pairs into micro-batches


def state(loss: Loss) -> Check:
    """Check that buffers are the same after steps in one pass, pair by pair and in other orders, and change in updates alone."""
    name, meaning = "state", "buffers depend on the pairs of a step, not on micro-batches, and change in updates alone"
    if not any(term.updated for _, term in loss.terms):
        return Check(name, NOT_APPLICABLE, meaning="the loss keeps no state")
    steps = [make_pairs(make_statistics(loss.needs, seed=seed), loss.needs) for seed in range(STEPS)]
    expected, *others = (_after(loss, steps, parts) for parts in PARTS)
    errors = {key: max(_relative(other[key], value) for other in others) for key, value in expected.items()}
    worst = max(errors, key=lambda key: errors[key])
    where, remedy = (
        f"{worst} differs where the pairs of a step come in parts",
        "observe pairs one by one (no mean over them), and take sums and means in the update.",
    )
    touched = copy.deepcopy(loss)
    per_pair(touched, steps[0])
    changed = [key for key, value in _buffers(touched).items() if _relative(value, _buffers(loss)[key])]
    if changed and errors[worst] <= ROUNDING:
        where, remedy = f"forward changes {changed[0]}", "change buffers in before_step or after_step alone."
        return verdict(name, float("inf"), ROUNDING, "relative", meaning, where, remedy)
    return verdict(name, errors[worst], ROUNDING, "relative", meaning, where, remedy)


def _after(loss: Loss, steps: list[Pairs], parts: tuple[tuple[int, ...], ...]) -> dict[str, Tensor]:
    """Return the buffers after the steps, each observed in these parts."""
    loss = copy.deepcopy(loss)
    for pairs in steps:
        for _, term in loss.terms:
            observed = [term.observe(rows(pairs, list(part))) for part in parts]
            term.update({key: torch.cat([part[key] for part in observed]) for key in observed[0]})
    return _buffers(loss)


def _buffers(loss: Loss) -> dict[str, Tensor]:
    return {name.removeprefix("module."): buffer.double() for name, buffer in loss.named_buffers()}


def _relative(new: Tensor, old: Tensor) -> float:
    same = (new == old) | (new.isnan() & old.isnan())
    return float(((new - old).abs() / old.abs().clamp(min=1)).masked_fill(same, 0).max())
