"""Register a loss, compute a value by hand, and verify it without a model: `python examples/own_loss.py`."""

import torch

from plo import Pairs, Side, get_loss, register_loss
from plo.verify import verify


@register_loss("hinge2", needs=("ref_logps",), paper="mine")
def hinge2(pairs: Pairs, *, beta: float = 0.1) -> torch.Tensor:
    """Punish a margin below 1 / beta, quadratically: max(0, 1 - beta h)^2, h in nats."""
    return torch.relu(1 - beta * pairs.log_ratio_margin()).square()


def side(logp: float, ref_logp: float) -> Side:
    """Return a response of one token."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    return Side(logps=torch.tensor([[logp]]), ref_logps=torch.tensor([[ref_logp]]), mask=mask)


# Log-ratios of 3 and -2 nats: the margin is 5, and (1 - 0.1 * 5)^2 = 0.25.
value = get_loss("hinge2")(Pairs(chosen=side(-1.0, -4.0), rejected=side(-4.0, -2.0)))
print(f"one pair with a margin of 5 nats: {value.item():.2f}")
assert value.item() == 0.25

report = verify(get_loss("hinge2"), labels=False)
for check in report.checks:
    print(f"{check.name:16} {check.result:10} {check.measured}")
assert report.passed
