"""Descriptions of a loss at step 0, which are no verdicts: its value and the size of its gradient."""

import math

import torch

from plo.losses import Loss, get_loss
from plo.verify.check import DESCRIBED, Check
from plo.verify.inputs import Statistics, after_step, gradients_in, make_pairs, make_statistics, mean, per_pair

KL_STATISTICS = ("kl_ref_pi", "kl_pi_ref")  # 0 where the policy is the reference


def step_zero(loss: Loss) -> Check:
    """Describe the value of the loss where the policy is the reference, as at the first step."""
    pairs = make_pairs(_at_reference(loss), loss.needs)
    loss = after_step(loss, pairs, fresh=True)
    value = float(mean(loss, pairs).detach())
    each = per_pair(loss, pairs).detach()
    if loss.level == "token" or len(loss.terms) > 1:
        note = "the mean of the batch"
    elif float(each.max() - each.min()) < 1e-9:
        note = "the same for every pair"
    else:
        note = f"from {float(each.min()):.3g} to {float(each.max()):.3g} over pairs"
    shown = f"{value:.6g}" + (" = ln 2" if abs(value - math.log(2)) < 1e-9 else "")
    meaning = f"value where the policy is the reference: {note}"
    return Check("step 0", DESCRIBED, shown, meaning, values={"value": value})


def scale(loss: Loss) -> Check:
    """Describe the norm of the gradient in logps at step 0, relative to DPO's with the same beta (.1 by default)."""
    beta = beta_of(loss, default=0.1)
    ratio = _gradient_norm(loss) / _gradient_norm(get_loss("dpo", beta=beta))
    meaning = (
        f"gradient in logps at step 0 relative to dpo(beta={beta:g}); Adam undoes a constant factor, clipping does not"
    )
    return Check("gradient scale", DESCRIBED, f"{ratio:.3g} x DPO's", meaning, values={"ratio": ratio})


def beta_of(loss: Loss, default: float) -> float:
    """Return the loss's beta, or the default where it has none."""
    beta = loss.params.get("beta")
    return float(beta) if isinstance(beta, int | float) and beta > 0 else default


def _gradient_norm(loss: Loss) -> float:
    statistics = _at_reference(loss)
    loss = after_step(loss, make_pairs(statistics, loss.needs), fresh=True)
    leaves = [side["logps"].requires_grad_() for side in statistics]
    return float(torch.stack(gradients_in(mean(loss, make_pairs(statistics, loss.needs)), leaves)).norm())


def _at_reference(loss: Loss) -> Statistics:
    statistics = make_statistics({*loss.needs, "ref_logps"})
    for side in statistics:
        side["logps"] = side["ref_logps"].clone()
        side |= {name: torch.zeros_like(side["logps"]) for name in KL_STATISTICS if name in side}
    return statistics
