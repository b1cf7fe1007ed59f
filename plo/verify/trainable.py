"""Check that a loss can be trained at all, in milliseconds and without a model."""

import copy

import torch

from plo.errors import PloError
from plo.losses import Loss, LossError
from plo.verify.inputs import CONSTANTS, HIDDEN, by_key, make_pairs, make_statistics, mean


def check_trainable(loss: Loss) -> None:
    """Refuse a loss that has no gradient in the policy's statistics, on pairs of random statistics.

    A mistake inside the loss (any error but plo's own) is left to training, which records its traceback.

    Raises:
        LossError: the loss reads a statistic that it does not need, returns something that does not fit its level, or has
            no gradient in any of the policy's statistics.
    """
    statistics = make_statistics(loss.needs)
    carriers = [values.requires_grad_() for (_, name), values in by_key(statistics).items() if name not in CONSTANTS]
    try:
        with torch.random.fork_rng(devices=[]):
            total = mean(copy.deepcopy(loss).build(HIDDEN).double(), make_pairs(statistics, loss.needs))
    except PloError as error:
        said = str(error) if repr(loss.name) in str(error) else f"The loss {loss.name!r}: {error}"
        raise LossError(said) from None
    except Exception:
        return
    gradients = torch.autograd.grad(total, carriers, allow_unused=True) if total.requires_grad else []
    if all(gradient is None for gradient in gradients):
        raise LossError(
            f"The loss {loss.name!r} has no gradient in anything that the policy computes, so that nothing would be "
            f"trained. Compute it from pairs.chosen.logps or pairs.rejected.logps, without detach(), no_grad() or .item()."
        )
