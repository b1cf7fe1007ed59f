"""ADPO: what connects it with dpo, and what happens where one response is longer."""

from math import exp, log, log1p

import pytest
import torch

from plo.losses import LossError, get_loss
from plo.pairs import Pairs, Side
from plo.verify.inputs import make_pairs


def random_sides(dtype, at_reference=False):
    generator = torch.Generator().manual_seed(1)
    sides = []
    for _ in range(2):
        logps, ref = (-20 * torch.rand(64, 300, generator=generator, dtype=dtype) for _ in range(2))
        sides.append({"logps": ref.clone() if at_reference else logps, "ref_logps": ref})
    return sides


def evaluated(spec, sides):
    """Values, and the gradients of both responses' log-probs."""
    generator = torch.Generator().manual_seed(2)
    masks = [torch.arange(300) < torch.randint(1, 301, (64, 1), generator=generator) for _ in range(2)]
    for side in sides:
        side["logps"].requires_grad_()
    values = get_loss(spec)(make_pairs(sides, (), masks))
    values.sum().backward()
    return [values.detach(), *(side["logps"].grad for side in sides)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", ["adpo(window=all, beta=0.37)", "adpo(segments=1, beta=0.37)"])
def test_one_segment_is_dpo(spec, dtype):
    ours, dpo = (evaluated(name, random_sides(dtype)) for name in (spec, "dpo(beta=0.37)"))
    if "all" in spec:
        assert all(torch.equal(a, b) for a, b in zip(ours, dpo, strict=True))
    torch.testing.assert_close(ours, dpo, rtol=1e-12 if dtype == torch.float64 else 1e-4, atol=1e-9)


@pytest.mark.parametrize("spec", ["adpo", "adpo(window=7)", "adpo(segments=5)"])
def test_the_gradient_at_the_reference_is_that_of_dpo(spec):
    ours, dpo = (evaluated(name, random_sides(torch.float64, at_reference=True)) for name in (spec, "dpo"))
    torch.testing.assert_close(ours[1:], dpo[1:], rtol=1e-12, atol=1e-15)


def test_a_longer_response_s_tail_stands_against_0():
    """D(y_w) = 1; D(y_l) = 1, 2, 3, 4: windows of 2 have margins 1 - 3 and 0 - 7, at beta .5: -1 and -3.5."""

    def side(ratios):
        logps = torch.tensor([ratios + [0.0] * (6 - len(ratios))], dtype=torch.float64)
        return Side(logps=logps, ref_logps=torch.zeros_like(logps), mask=torch.arange(6)[None] < len(ratios))

    pairs = Pairs(chosen=side([1.0]), rejected=side([1.0, 2.0, 3.0, 4.0]))
    value = get_loss("adpo(beta=0.5, window=2)").evaluate(pairs)
    assert value.values.item() == pytest.approx(
        log1p(exp(1)) + log1p(exp(3.5)), abs=1e-9
    )  # nothing for the third window
    assert value.metrics["margin"].item() == pytest.approx(-4.5, abs=1e-9)
    # parts: chosen 0; rejected 0, 0, 1, 1 of two
    value = get_loss("adpo(beta=0.5, segments=2)").evaluate(pairs)
    assert value.values.item() == pytest.approx(log1p(exp(1)) + log1p(exp(3.5)), abs=1e-9)
    # chosen 0 of five; rejected floor(0, 5/4, 10/4, 15/4) = 0, 1, 2, 3: margins 0, -1, -1.5, -2, and no fifth part
    value = get_loss("adpo(beta=0.5, segments=5)").evaluate(pairs)
    assert value.values.item() == pytest.approx(log(2) + sum(log1p(exp(m)) for m in (1, 1.5, 2)), abs=1e-9)


def test_two_ways_to_cut_are_refused():
    with pytest.raises(LossError, match="window=4 has no effect with segments=2: give one of the two"):
        get_loss("adpo(window=4, segments=2)")
    with pytest.raises(LossError, match="window"):
        get_loss("adpo(window=0)")
