"""Checks of a loss's gradient: it is the derivative, and it reaches the policy alone."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plo.losses import Loss
from plo.losses.register import SIDES
from plo.verify.check import FAILED, PASSED, Check, verdict
from plo.verify.inputs import (
    CONSTANTS,
    MASKS,
    Key,
    Statistics,
    by_key,
    gradients_in,
    make_pairs,
    make_statistics,
    per_pair,
)

STEP = 1e-6  # of the difference quotients: in float64 the error of (f(x+e) - f(x-e)) / 2e is about 1e-9 of f
TOLERANCE = 1e-6  # of the largest entry of the gradient


def derivative(loss: Loss) -> Check:
    """Compare autograd with central differences in float64, in `logps` and every statistic that carries gradient.

    The comparison is made at two random points, one with log-probabilities four times as large, so that a clamp is met
    on either side. Where a stop-gradient hides a dependence, the loss must declare it (`detached=`): then the hidden
    part is held fixed, and the two must agree.
    """
    worst, where = 0.0, ""
    stopped: dict[str, None] = {}  # where a stop-gradient explains the difference, in order
    for scale in (1.0, 4.0):
        statistics = make_statistics(loss.needs, seed=int(scale))
        for side in statistics:
            side["logps"] = side["logps"] * scale
        gradients = _autograd(loss, statistics)
        largest = max(float(gradient.abs().max()) for gradient in gradients.values())
        quotients = _differences(loss, statistics, list(gradients))
        held: dict[Key, Tensor] = {}
        for key, gradient in gradients.items():
            error, place = _worst(gradient, quotients[key], largest, key)
            if not error <= TOLERANCE:
                held = held or _differences(loss, statistics, list(gradients), hold=True)
                error_held, place_held = _worst(gradient, held[key], largest, key)
                if error_held <= TOLERANCE:
                    stopped[_shown(key)] = None
                    if _declared(loss, key):
                        error, place = error_held, place_held
            if not error <= worst:
                worst, where = error, place
    meaning = "autograd is the derivative in " + ", ".join(dict.fromkeys(name for _, name in gradients))
    remedy = "a custom backward pass (autograd.Function, a hook) is wrong, or the loss is not differentiable there."
    if stopped and worst <= TOLERANCE:
        meaning += f"; stop-gradient, as declared, in {', '.join(stopped)} (held fixed)"
    elif stopped:
        remedy = (
            f"a stop-gradient (detach or no_grad) hides the dependence on {', '.join(stopped)}. If it is meant, "
            f"register the loss with detached={tuple(stopped)}; else {remedy}"
        )
    return verdict("derivative", worst, TOLERANCE, "of the largest entry", meaning, where, remedy)


def reach(loss: Loss) -> Check:
    """Check that gradient reaches the policy's statistics and the loss's own parameters alone, and nothing off the mask.

    `ref_logps`, `weights` and columns are constants. `hidden` requires gradient here, and must not receive any.
    """
    name, meaning = (
        "gradient reach",
        "gradient reaches the policy's statistics alone: no constant, nothing off the mask or detached",
    )
    leak = functools.partial(Check, name, FAILED, "1 leak", meaning)
    statistics = make_statistics(loss.needs)
    inputs = {
        key: v.requires_grad_() for key, v in by_key(statistics).items() if key[1] not in ("ref_logps", "weights")
    }
    values = per_pair(loss, make_pairs(statistics, loss.needs))
    known = {id(leaf) for leaf in (*inputs.values(), *loss.parameters())}
    for leaf in _leaves(values):
        if id(leaf) not in known:
            where = f"a tensor {tuple(leaf.shape)} that {_origin(leaf, statistics)} receives gradient"
            return leak(where, "detach it, or make it no leaf of the graph.")
    gradients = gradients_in(values.sum(), list(inputs.values()))
    reached = {key: gradient for key, gradient in zip(inputs, gradients, strict=True) if (gradient != 0).any()}
    for key, gradient in reached.items():
        if key[1] == "hidden" or (key[1] != "logps" and _declared(loss, key)):
            return leak(f"{_shown(key)} receives gradient", "detach it in the loss.")
        off = ~MASKS[key[0]] & (gradient != 0)
        if off.any():
            pair, token = off.nonzero()[0].tolist()
            return leak(
                f"pair {pair}, token {token} of {_shown(key)}, off the mask", "mask the values that the loss sums."
            )
    if not any(key[1] == "logps" for key in reached):
        where = "neither side's logps receive any gradient"
        return Check(name, FAILED, "0 inputs", meaning, where, "use logps without detach: nothing would be trained.")
    measured = f"{len(reached)} inputs: {', '.join(map(_shown, reached))}"
    return Check(name, PASSED, measured, meaning, values={"inputs": len(reached)})


def _autograd(loss: Loss, statistics: Statistics) -> dict[Key, Tensor]:
    leaves = {
        key: values.clone().requires_grad_() for key, values in by_key(statistics).items() if key[1] not in CONSTANTS
    }
    return dict(zip(leaves, gradients_in(_total(loss, statistics, leaves), list(leaves.values())), strict=True))


def _differences(loss: Loss, statistics: Statistics, keys: list[Key], hold: bool = False) -> dict[Key, Tensor]:
    """Return central differences at every response token; with `hold`, stopped values are held fixed."""
    kept: list[Any] | None = None
    if hold:
        leaves = {key: statistics[key[0]][key[1]].clone().requires_grad_() for key in keys}
        with _StopGradients() as recorder:
            _total(loss, statistics, leaves)
        kept = recorder.kept
    quotients = {}
    for which, name in keys:
        values = statistics[which][name]
        quotient = torch.zeros_like(values)
        for pair, token in MASKS[which].nonzero().tolist():
            ends = []
            for step in (STEP, -STEP):
                moved = values.clone()
                moved[pair, token] += step
                with _StopGradients(kept) if hold else torch.enable_grad():
                    ends.append(float(_total(loss, statistics, {(which, name): moved}).detach()))
            quotient[pair, token] = (ends[0] - ends[1]) / (2 * STEP)
        quotients[which, name] = quotient
    return quotients


_READ_DATA = inspect.getattr_static(Tensor, "data").__get__  # what `tensor.data` calls


class _StopGradients(TorchFunctionMode):
    """Mode that records what `detach`, `.data` and `no_grad` return, in order, or returns a given record instead.

    A difference quotient thus holds fixed what the gradient holds fixed.
    """

    def __init__(self, kept: list[Any] | None = None):
        super().__init__()
        self.kept: list[Any] = []
        self._given = None if kept is None else iter(kept)

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        hides = function is Tensor.detach or function == _READ_DATA or not torch.is_grad_enabled()
        if not hides or not isinstance(result, Tensor):
            return result
        if self._given is None:
            self.kept.append(result.detach().clone())
            return result
        held = next(self._given, result)
        return held if held.shape == result.shape else result


def _total(loss: Loss, statistics: Statistics, moved: dict[Key, Tensor]) -> Tensor:
    sides = [{**side, **{n: v for (w, n), v in moved.items() if w == which}} for which, side in enumerate(statistics)]
    return per_pair(loss, make_pairs(sides, loss.needs)).sum()


def _worst(gradient: Tensor, quotient: Tensor, largest: float, key: Key) -> tuple[float, str]:
    """Return the largest difference as a share of the largest gradient entry of all inputs, and its place."""
    errors = ((gradient - quotient).abs() / max(largest, 1e-6)).nan_to_num(nan=float("inf"))
    pair, token = divmod(int(errors.argmax()), errors.shape[1])
    found = f"autograd {float(gradient[pair, token]):.6g}, difference quotient {float(quotient[pair, token]):.6g}"
    return float(errors.max()), f"pair {pair}, token {token}, {_shown(key)}: {found}"


def _declared(loss: Loss, key: Key) -> bool:
    return key[1] in loss.detached or _shown(key) in loss.detached


def _shown(key: Key) -> str:
    return f"{SIDES[key[0]]}.{key[1]}"


def _leaves(values: Tensor) -> list[Tensor]:
    """Return the tensors that a backward pass from `values` would give a gradient."""
    found, seen, waiting = [], set(), [values.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if (leaf := getattr(node, "variable", None)) is not None:  # AccumulateGrad
            found.append(leaf)
        waiting.extend(parent for parent, _ in node.next_functions)
    return found


def _origin(leaf: Tensor, statistics: Statistics) -> str:
    if isinstance(leaf, nn.Parameter):
        return "is a parameter outside the loss's own module"
    for key, values in by_key(statistics).items():
        mask = MASKS[key[0]]
        if leaf.shape == values.shape and torch.equal(leaf.detach()[mask], values.detach()[mask]):
            return f"equals {_shown(key)}"
    return "is no input of the loss"
