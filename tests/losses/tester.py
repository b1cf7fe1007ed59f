"""One tester that every loss passes.

@pytest.mark.parametrize("spec", ["mine", "mine(beta=0.5)"])
class TestMine(LossTester):
    pass
"""

from typing import ClassVar

import pytest
import torch

from plo.losses import Loss, get_loss
from plo.pairs import MissingStatistic
from plo.verify.inputs import LENGTHS, WIDTH, make_pairs, make_statistics, mask_of, per_pair, rows

CARRY_GRADIENT = ("logps", "kl_ref_pi", "kl_pi_ref", "entropy", "log_p2")


def built(spec, dtype=torch.float64) -> Loss:
    torch.manual_seed(0)
    loss = get_loss(spec)
    return loss.build(7).to(dtype)


class LossTester:
    """Subclass it, parametrised by `spec`: anything that `get_loss` takes.

    Attributes:
        exceptions: {(spec, name of a check): reason} for what a loss cannot pass by design. The check must then
            fail: an exception that is not needed, or no longer, is an error. What it leaves open belongs into a
            test of the loss's own.
    """

    exceptions: ClassVar[dict[tuple[str, str], str]] = {}

    @pytest.fixture(autouse=True)
    def _apply_exception(self, request, spec):
        reason = self.exceptions.get((spec, request.node.originalname))
        if reason:
            request.applymarker(pytest.mark.xfail(reason=reason, strict=True))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_shape_and_dtype(self, spec, dtype):
        loss = built(spec, dtype)
        value = loss.evaluate(make_pairs(make_statistics(loss.needs, dtype), loss.needs))
        assert value.values.shape == ((4, WIDTH) if loss.level == "token" else (4,))
        assert value.values.dtype == dtype
        for name, metric in value.metrics.items():
            assert metric.shape == (4,), name
            assert not metric.requires_grad, name

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("sign", [1, -1])
    @pytest.mark.parametrize("which", [0, 1])
    def test_finite_at_extreme_log_ratios(self, spec, which, sign, dtype):
        """D(y) = +-1000 nats for one response of each pair, the other's 0: value and gradient are finite."""
        loss = built(spec, dtype)
        sides = make_statistics(loss.needs, dtype)
        length = torch.tensor(LENGTHS[which])[:, None]
        tokens = torch.full((4, WIDTH), 1000.0, dtype=dtype) / length
        zeros = torch.zeros_like(tokens)
        sides[which]["logps"] = zeros if sign > 0 else -tokens
        sides[1 - which]["logps"] = zeros.clone()
        for index, side in enumerate(sides):
            if "ref_logps" in side:
                side["ref_logps"] = -tokens if (index == which and sign > 0) else zeros
        for side in sides:
            side["logps"] = side["logps"].clone().requires_grad_()
        values = per_pair(loss, make_pairs(sides, loss.needs))
        assert values.isfinite().all()
        values.sum().backward()
        assert all(side["logps"].grad is None or side["logps"].grad.isfinite().all() for side in sides)

    def test_ignores_padding(self, spec):
        loss = built(spec)
        sides = make_statistics(loss.needs)
        expected = per_pair(loss, make_pairs(sides, loss.needs))
        wide = []
        for side, lengths in zip(sides, LENGTHS, strict=True):
            off = ~mask_of(lengths, WIDTH + 3)
            new = {}
            for name, values in side.items():
                new[name] = torch.cat([values, torch.zeros_like(values[:, :3])], 1)
                new[name][off] = float("nan")
            wide.append(new)
        masks = [mask_of(lengths, WIDTH + 3) for lengths in LENGTHS]
        torch.testing.assert_close(per_pair(loss, make_pairs(wide, loss.needs, masks)), expected)

    def test_ignores_order_and_company(self, spec):
        loss = built(spec)
        pairs = make_pairs(make_statistics(loss.needs), loss.needs)
        expected = per_pair(loss, pairs)
        shuffled = per_pair(loss, rows(pairs, [2, 0, 3, 1]))
        if loss.level == "batch":
            torch.testing.assert_close(shuffled.mean(), expected.mean())
            return
        torch.testing.assert_close(shuffled, expected[[2, 0, 3, 1]])
        alone = torch.cat([per_pair(loss, rows(pairs, [row])) for row in range(4)])
        if len(loss.terms) == 1:  # a sum with a token term shares the batch's token count
            torch.testing.assert_close(alone, expected)

    def test_gradient_reaches_what_it_may(self, spec):
        loss = built(spec)
        sides = make_statistics({*loss.needs, *CARRY_GRADIENT, "hidden", "weights"})
        for side in sides:
            for values in side.values():
                values.requires_grad_()
        per_pair(loss, make_pairs(sides, loss.needs)).sum().backward()
        assert any(side["logps"].grad is not None and side["logps"].grad.abs().sum() > 0 for side in sides)
        for side, lengths in zip(sides, LENGTHS, strict=True):
            for name, values in side.items():
                needed = name in loss.needs and name != "hidden"  # hidden states come detached and stay so
                may = name == "logps" or needed
                if not may:
                    assert values.grad is None, f"{name} received a gradient"
                elif values.grad is not None:
                    assert (values.grad[~mask_of(lengths)] == 0).all(), f"{name} off the mask"

    def test_gradient_is_the_derivative(self, spec):
        """Finite differences in logps, and in each statistic that receives any gradient."""
        loss = built(spec)
        sides = make_statistics(loss.needs)
        inputs = [(which, name) for which in (0, 1) for name in CARRY_GRADIENT if name in sides[which]]

        def values_of(*tensors):
            moved = [dict(side) for side in sides]
            for (which, name), tensor in zip(inputs, tensors, strict=True):
                moved[which][name] = tensor
            return per_pair(loss, make_pairs(moved, loss.needs))

        tensors = [sides[which][name].clone().requires_grad_() for which, name in inputs]
        gradients = torch.autograd.grad(values_of(*tensors).sum(), tensors, allow_unused=True)
        for (_, name), tensor, gradient in zip(inputs, tensors, gradients, strict=True):
            if name != "logps" and (gradient is None or not gradient.any()):
                tensor.requires_grad_(False)  # behind a stop-gradient: the losses' own tests say which
        assert torch.autograd.gradcheck(values_of, tensors)

    def test_reads_what_it_needs_and_no_more(self, spec):
        loss = built(spec)
        sides = make_statistics(loss.needs)
        assert per_pair(loss, make_pairs(sides, loss.needs)).isfinite().all()
        for need in loss.needs:
            fewer = [{name: values for name, values in side.items() if name != need} for side in sides]
            columns = tuple(other for other in loss.needs if other != need)
            named = need.removeprefix("column:")
            with pytest.raises(MissingStatistic, match=named):
                per_pair(loss, make_pairs(fewer, columns))


PAIRS = make_pairs(make_statistics(("ref_logps", "kl_ref_pi")), ("ref_logps", "column:gap"))
