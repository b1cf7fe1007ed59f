"""Check of policy recovery: minimising the population loss of a small problem gives the policy of its labels."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from plo.extras import is_installed
from plo.losses import Loss
from plo.losses.register import PREFERENCE_MODELS
from plo.pairs import Pairs, Side
from plo.verify.check import DESCRIBED, NOT_APPLICABLE, Check, judge
from plo.verify.describe import beta_of
from plo.verify.problems import FORCED, Problem, problem_of, variants

THRESHOLD = 1e-8  # nats
ROUNDS, EVALUATIONS = 4, 200
FAR = 1e6  # log-ratio times beta beyond which there is no minimum
GIVEN = ("logps", "ref_logps", "kl_ref_pi", "kl_pi_ref", "entropy", "log_p2", "hidden", "weights")


@dataclass(frozen=True)
class Outcome:
    """Result of minimising a population loss.

    Attributes:
        kl: largest KL(pi* || pi) over the states, nats; inf where the loss falls without end.
        reward: expected reward, then nan; `best` and `start`: those of pi* and of the reference.
        left: largest entry of the gradient at the end, as a share of that at the start.
    """

    kl: float
    reward: float
    best: float
    start: float
    left: float


def policy_recovery(loss: Loss) -> Check:
    """Check that minimising the population loss recovers the optimal policy of the preference model it assumes."""
    name = "policy recovery"
    if reason := _cannot(loss):
        return Check(name, NOT_APPLICABLE, meaning=reason)
    declared = loss.assumes if loss.assumes in PREFERENCE_MODELS else None
    if loss.assumes and not declared:
        return Check(name, NOT_APPLICABLE, meaning=loss.assumes)
    outcome = minimise(loss, problem_of(declared, beta_of(loss, default=1.0), loss.params))
    measured = f"KL {outcome.kl:.1e} nats"
    values = {"kl": outcome.kl, "threshold": THRESHOLD, "gradient_left": outcome.left}
    recovered = outcome.kl <= THRESHOLD
    if declared is None:
        text = "recovered" if recovered else "not recovered" + _unfinished(outcome)
        meaning = (
            f"{text}: KL(pi* || pi) on a Bradley-Terry bandit; the loss declares no model (register_loss(assumes=...))"
        )
        return Check(name, DESCRIBED, measured, meaning, values=values)
    meaning = f"KL(pi* || pi) of the population loss's minimiser, labels of its own model ({declared})"
    measured += f", at most {THRESHOLD:.0e}"
    rewards = f"expected reward {outcome.reward:.3g}; pi* has {outcome.best:.3g}, ref {outcome.start:.3g}"
    where = rewards + _unfinished(outcome)
    remedy = "a sign or factor of beta, an assumption the loss does not share with its assumes=, or a wrong gradient."
    return judge(recovered, name, measured, meaning, where, remedy, values)


def stress(loss: Loss) -> list[Check]:
    """Describe the policy that noisy, biased, intransitive or missing labels lead to: KL to pi* and expected reward."""
    if _cannot(loss):
        return []
    found = []
    for name, problem in variants(loss.assumes, beta_of(loss, default=1.0)).items():
        outcome = minimise(loss, problem, rounds=1)
        measured = f"KL {outcome.kl:.2g} nats, reward {outcome.reward:.3f}"
        meaning = f"to pi* of the reward, which has {outcome.best:.3f}, ref {outcome.start:.3f}{_unfinished(outcome)}"
        values = {"kl": outcome.kl, "reward": outcome.reward, "best": outcome.best, "reference": outcome.start}
        found.append(Check(f"labels: {name}", DESCRIBED, measured, meaning, values=values))
    return found


def minimise(loss: Loss, problem: Problem, rounds: int = ROUNDS) -> Outcome:
    """Minimise the population loss over the policy, from the reference, and over the loss's own parameters.

    LBFGS in float64 over log-ratios times beta, which gives every beta the same scale. Where part of the
    gradient is stopped there is no such minimum, but a policy at which the gradient vanishes: least squares.
    """
    loss = copy.deepcopy(loss).build(len(problem.ref) + 1).double()
    shift = torch.zeros_like(problem.ref, requires_grad=True)

    def log_pi() -> Tensor:
        return (problem.ref + shift / problem.beta).log_softmax(-1)

    def gradient_in_shift() -> Tensor:
        return torch.autograd.grad(population(loss, problem, log_pi()), shift)[0]

    parameters = [shift, *(p for p in loss.parameters() if p.requires_grad)]
    start = float(gradient_in_shift().abs().max())
    if loss.detached and len(parameters) == 1:
        _solve(shift, gradient_in_shift)
    else:
        _lbfgs(parameters, lambda: population(loss, problem, log_pi()), start, rounds)
    left = float(gradient_in_shift().abs().max()) / max(start, 1e-300)
    with torch.no_grad():
        policy, best, reference = log_pi(), problem.reward(problem.target), problem.reward(problem.ref)
        if not float(shift.abs().max()) < FAR:
            return Outcome(math.inf, math.nan, best, reference, math.inf)
        return Outcome(problem.kl(policy), problem.reward(policy), best, reference, left)


def population(loss: Loss, problem: Problem, log_pi: Tensor) -> Tensor:
    """Return the exact expectation of the loss over pairs and labels: both orders, weighted by their probability."""
    both = torch.stack([problem.first, problem.second])
    weights = torch.cat([problem.p, 1 - problem.p])
    columns = {
        need.removeprefix("column:"): torch.ones_like(weights) for need in loss.needs if need.startswith("column:")
    }
    one, other = (_side(problem, log_pi, items, loss.needs) for items in (both.flatten(), both.flip(0).flatten()))
    pairs = Pairs(chosen=one, rejected=other, columns=columns, progress=0.5)
    total = log_pi.new_zeros(())
    for coefficient, term in loss.terms:
        value = term.evaluate(pairs)
        values, counts = (value.values, 1) if value.mask is None else (value.values.sum(-1), value.mask.sum(-1))
        total = total + coefficient * (weights * values).sum() / (weights * counts).sum()
    return total


def _side(problem: Problem, log_pi: Tensor, items: Tensor, needs: tuple[str, ...]) -> Side:
    states, actions = problem.states[items], problem.actions[items]
    forced = actions == FORCED
    mask = torch.arange(states.shape[1])[None] < problem.lengths[items][:, None]

    def at_state(values: Tensor) -> Tensor:
        return values[states].masked_fill(forced, 0)  # a forced token: both distributions are sure of it

    def at_token(values: Tensor) -> Tensor:
        return values[states, actions.clamp(min=0)].masked_fill(forced, 0)

    pi, ref = log_pi, problem.ref
    known = {
        "logps": lambda: at_token(pi),
        "ref_logps": lambda: at_token(ref),
        "kl_ref_pi": lambda: at_state((ref.exp() * (ref - pi)).sum(-1)),
        "kl_pi_ref": lambda: at_state((pi.exp() * (pi - ref)).sum(-1)),
        "entropy": lambda: at_state(-(pi.exp() * pi).sum(-1)),
        "log_p2": lambda: at_state((2 * pi).logsumexp(-1)),
        "hidden": lambda: one_hot(torch.where(forced, len(ref), states), len(ref) + 1).to(pi.dtype),
        "weights": lambda: torch.ones_like(at_token(ref)),
    }
    return Side(mask=mask, **{name: known[name]() for name in ("logps", *needs) if name in known})


def _lbfgs(parameters: list[Tensor], objective: Callable[[], Tensor], start: float, rounds: int) -> None:
    for _ in range(rounds):  # repeated with an empty memory, because a line search may give up near the end
        before = [p.detach().clone() for p in parameters]
        optimiser = torch.optim.LBFGS(
            parameters,
            max_iter=EVALUATIONS,
            max_eval=EVALUATIONS,
            history_size=30,
            tolerance_grad=1e-10 * start,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimiser.zero_grad()  # noqa: B023  (called within this round)
            value = objective()
            value.backward()
            return value

        optimiser.step(closure)
        if not float(parameters[0].detach().abs().max()) < FAR:
            return
        if all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True)):
            return


def _solve(shift: Tensor, gradient: Callable[[], Tensor]) -> None:
    """Set `shift` to where the gradient vanishes."""
    from scipy.optimize import least_squares  # an extra, plo[report]; `_cannot` checks that it is installed

    def field(values: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            shift.copy_(torch.from_numpy(values).view_as(shift))
        return gradient().detach().numpy().ravel()

    found = least_squares(field, shift.detach().numpy().ravel().copy(), xtol=1e-15, ftol=1e-15, gtol=1e-15)
    field(found.x)


def _cannot(loss: Loss) -> str:
    if any(term.updated for _, term in loss.terms):
        return "its state follows the training, so that the loss which is minimised changes on the way"
    if loss.level == "batch":
        return 'level="batch": values depend on which pairs share a batch, so there is no sum over single pairs'
    if unknown := [need for need in loss.needs if need not in GIVEN and not need.startswith("column:")]:
        return f"it needs {', '.join(unknown)}, which only a language model's head gives"
    if loss.detached and not loss.has_parameters and not is_installed("scipy"):
        return "part of its gradient is stopped, and to find where the rest vanishes takes scipy: pip install 'plo[report]'"
    return ""


def _unfinished(outcome: Outcome) -> str:
    if outcome.left < 1e-4:
        return ""
    if math.isinf(outcome.kl):
        return " (the loss falls without end)"
    return f" (no smooth minimum reached: {outcome.left:.0e} of the first gradient is left)"
