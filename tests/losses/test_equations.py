"""Losses against their papers' equations, written out in plain Python, on random pairs of unequal lengths."""

from math import exp, log

import pytest
import torch

from plo.losses import LossError, get_loss
from plo.pairs import Pairs, Side
from plo.verify.inputs import LENGTHS, make_statistics, mask_of

GAPS = [0.4, -0.3, 2.5, 0.9]  # of scores; the second pair's label and scores disagree


def make(gaps=GAPS, progress=0.25):
    sides = make_statistics(("ref_logps",), seed=3)
    for side in sides:
        side["logps"].requires_grad_()
    chosen, rejected = (Side(mask=mask_of(lengths), **side) for lengths, side in zip(LENGTHS, sides, strict=True))
    columns = {"margin": torch.tensor(gaps, dtype=torch.float64)}
    return Pairs(chosen=chosen, rejected=rejected, columns=columns, progress=progress), sides


def numbers():
    """[{"w": (log pi, log ref, tokens), "l": ..., "g": score}, ...] of the pairs, summed token by token."""
    _, sides = make()
    found = []
    for pair, gap in enumerate(GAPS):
        numbers = {"g": gap}
        for name, side, lengths in zip("wl", sides, LENGTHS, strict=True):
            tokens = range(lengths[pair])
            pi, ref = (sum(side[what][pair, t].item() for t in tokens) for what in ("logps", "ref_logps"))
            numbers[name] = (pi, ref, len(tokens))
        found.append(numbers)
    return found


def sigma(x):
    return 1 / (1 + exp(-x))


def ratio(side):
    return exp(side[0]) / exp(side[1])


def dpo(n, beta, factor=1.0, offset=0.0):
    return -log(sigma(beta * log(ratio(n["w"])) - factor * beta * log(ratio(n["l"])) - offset))


def coins(a, b):
    return a * log(a / b) + (1 - a) * log((1 - a) / (1 - b))


def link(phi):
    return lambda n: -log(sigma(0.3 * (phi(ratio(n["w"])) - phi(ratio(n["l"])))))


def h(n):
    return log(ratio(n["w"])) - log(ratio(n["l"]))


EQUATIONS = {
    "cpo(beta=0.3, alpha=0.7)": lambda n: -log(sigma(0.3 * (n["w"][0] - n["l"][0]))) - 0.7 * n["w"][0] / n["w"][2],
    "rpo(beta=0.3, alpha=0.7)": lambda n: dpo(n, 0.3) - 0.7 * n["w"][0] / n["w"][2],
    "minor_dpo(beta=0.3)": lambda n: -log(sigma(0.3 * (log(ratio(n["w"])) - max(0, log(ratio(n["l"])))))),
    "dpo_shift(beta=0.3, lam=0.6)": lambda n: dpo(n, 0.3, factor=0.6),
    # a quarter of the way from .6 to 1
    "dpo_shift(beta=0.3, lam=0.6, lam_end=1)": lambda n: dpo(n, 0.3, factor=0.7),
    "odpo(beta=0.3, alpha=0.7)": lambda n: dpo(n, 0.3, offset=0.7 * log(n["g"])) if n["g"] > 0 else 0.0,
    "odpo(beta=0.3, alpha=0.7, scale=linear)": lambda n: dpo(n, 0.3, offset=0.7 * n["g"]),
    "rpo_reward(beta=0.3, eta=0.7)": lambda n: coins(sigma(0.7 * n["g"]), sigma(0.3 * h(n))),
    "rpo_reward(beta=0.3, eta=0.7, distance=forward_kl)": lambda n: coins(sigma(0.3 * h(n)), sigma(0.7 * n["g"])),
    "rpo_reward(beta=0.3, eta=0.7, distance=squared)": lambda n: (0.3 * h(n) - 0.7 * n["g"]) ** 2,
    "mappo(beta=0.3)": lambda n: dpo(n, 0.3, factor=min(1, max(0, n["g"]))),
    "f_dpo(divergence=chi2, beta=0.3)": link(lambda r: 2 * (r - 1)),
    "chi_po(beta=0.3)": link(lambda r: r + log(r)),
    "squared_po(beta=0.3)": link(lambda r: log(r) / r),
    "cal_dpo(beta=0.3)": lambda n: (
        dpo(n, 1) + 0.5 * ((log(ratio(n["w"])) - 1 / 0.6) ** 2 + (log(ratio(n["l"])) + 1 / 0.6) ** 2)
    ),
}


@pytest.mark.parametrize("spec", EQUATIONS)
def test_value(spec):
    pairs, _ = make()
    assert get_loss(spec)(pairs).tolist() == pytest.approx([EQUATIONS[spec](n) for n in numbers()], abs=1e-9)


F = {  # generators f of divergences; the losses have their derivatives
    "f_dpo(divergence=chi2, beta=0.3)": lambda r: (r - 1).square(),
    "chi_po(beta=0.3)": lambda r: r * r.log() + (r - 1).square() / 2,
    "squared_po(beta=0.3)": lambda r: r.log().square() / 2,
}


@pytest.mark.parametrize("spec", F)
def test_the_margin_is_the_difference_of_f_primes(spec):
    pairs, _ = make()
    slopes = []
    for side in (pairs.chosen, pairs.rejected):
        r = side.log_ratio().detach().exp().requires_grad_()
        slopes += torch.autograd.grad(F[spec](r).sum(), r)
    margin = get_loss(spec).evaluate(pairs).metrics["margin"]
    torch.testing.assert_close(margin, 0.3 * (slopes[0] - slopes[1]), rtol=1e-12, atol=1e-12)


def values_and_gradients(spec, **made):
    pairs, sides = make(**made)
    values = get_loss(spec)(pairs)
    return [values.detach(), *torch.autograd.grad(values.sum(), [side["logps"] for side in sides])]


@pytest.mark.parametrize(
    ("spec", "gap", "same", "factor"),
    [
        ("odpo", 1.0, "dpo", 1.0),  # log 1 = 0
        ("odpo(scale=linear)", 0.0, "dpo", 1.0),
        ("mappo", 1.0, "dpo", 1.0),
        ("mappo(scale=0.5)", 7.0, "dpo", 1.0),
        ("mappo", 0.6, "dpo_shift(lam=0.6)", 1.0),
        ("rpo_reward(distance=squared, beta=0.3)", 0.5, "ipo(reduction=sum, beta=0.3)", 0.09),
        ("rpo_reward(beta=0.1)", 1e4, "dpo", 1.0),  # the first coin always shows heads
    ],
)
def test_scores_at_which_two_losses_are_one(spec, gap, same, factor):
    ours, other = values_and_gradients(spec, gaps=[gap] * 4), values_and_gradients(same)
    torch.testing.assert_close(ours, [factor * each for each in other], rtol=1e-12, atol=1e-12)


def test_a_score_that_says_90_percent_is_label_smoothing_of_10_percent():
    ours = values_and_gradients("rpo_reward(beta=0.1)", gaps=[log(9)] * 4)
    smooth = values_and_gradients("dpo(label_smoothing=0.1)")
    entropy = -0.9 * log(0.9) - 0.1 * log(0.1)
    torch.testing.assert_close(ours, [smooth[0] - entropy, *smooth[1:]], rtol=1e-12, atol=1e-12)


def test_cpo_without_its_nll_is_dpo_under_a_uniform_reference():
    results = []
    for spec in ("cpo(alpha=0)", "dpo"):
        sides = [
            {**side, "ref_logps": torch.full_like(side["logps"], -2.0)} for side in make_statistics(("ref_logps",))
        ]
        masks = [mask_of((3, 1, 4, 6))] * 2  # equal lengths: ref(y_w) = ref(y_l)
        chosen, rejected = (Side(mask=mask, **side) for mask, side in zip(masks, sides, strict=True))
        results.append(get_loss(spec)(Pairs(chosen=chosen, rejected=rejected)))
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_minor_dpo_is_dpo_above_the_reference_and_leaves_the_rejected_response_alone_below_it():
    dpo, minor = values_and_gradients("dpo"), values_and_gradients("minor_dpo")
    above = torch.tensor([log(ratio(n["l"])) > 0 for n in numbers()])
    assert above.any() and not above.all()
    for a, b in zip(dpo, minor, strict=True):
        torch.testing.assert_close(a[above], b[above], rtol=1e-12, atol=1e-12)
    assert (minor[2][~above] == 0).all()


@pytest.mark.parametrize(("spec", "side"), [("minor_dpo", 1), ("dpop", 0)])
def test_rounding_does_not_decide_about_the_first_gradient(spec, side):
    """Log-ratios of +-1e-6 nats are those of pi = ref: a max(0, ...) of them is 0, and so is its gradient."""
    gradients = []
    for sign in (1, -1):
        ref = torch.full((1, 2), -3.0)
        logps = [(ref + sign * 5e-7).requires_grad_() for _ in range(2)]
        chosen, rejected = (Side(mask=torch.ones(1, 2, dtype=torch.bool), logps=p, ref_logps=ref) for p in logps)
        get_loss(spec)(Pairs(chosen=chosen, rejected=rejected)).sum().backward()
        gradients.append([p.grad[0, 0].item() for p in logps])
    assert gradients[0] == pytest.approx(gradients[1], abs=1e-6)
    expected = {"minor_dpo": [-0.05, 0.0], "dpop": [-0.05, 0.05]}[spec]  # beta sigma(0) = .05 without the max
    assert gradients[0][side] == pytest.approx(expected[side], abs=1e-6)


@pytest.mark.parametrize("spec", ["minor_dpo", "dpop"])
@pytest.mark.parametrize("nats", [1e-6, -1e-6, 9e-4, -9e-4, 2e-3, -2e-3])
def test_near_the_reference_the_value_is_still_the_equations(spec, nats):
    """D(y_w) = D(y_l) = nats: -log sigma(.1 (D - max(0, D))) and -log sigma(.1 * -50 max(0, -D))."""
    ref = torch.tensor([[-3.0]], dtype=torch.float64)
    side = Side(mask=torch.tensor([[True]]), logps=ref + nats, ref_logps=ref)
    margin = {"minor_dpo": 0.1 * (nats - max(0, nats)), "dpop": -5 * max(0, -nats)}[spec]
    value = get_loss(spec, beta=0.1)(Pairs(chosen=side, rejected=side))
    assert value.item() == pytest.approx(-log(sigma(margin)), abs=1e-12)


@pytest.mark.parametrize("name", ["odpo", "rpo_reward", "mappo"])
def test_scores_come_from_one_column_or_from_two(name):
    assert get_loss(name).needs == ("ref_logps", "column:margin")
    assert get_loss(name, score="a", less="b").needs == ("ref_logps", "column:a", "column:b")
    with pytest.raises(LossError, match="score and less both name the column 'a'"):
        get_loss(name, score="a", less="a")


def test_a_pair_whose_label_and_scores_disagree():
    """odpo: no loss and no gradient under "log"; mappo: the rejected response is left alone."""
    values, chosen, rejected = values_and_gradients("odpo", gaps=[0.0, -1e-3, -50.0, 1e-30])
    assert values[:3].tolist() == [0, 0, 0] and not chosen[:3].any() and not rejected[:3].any()
    assert all(each.isfinite().all() for each in (values, chosen, rejected))
    assert get_loss("odpo").evaluate(make(gaps=[-1.0] * 4)[0]).metrics["offset"].tolist() == [0] * 4
    values, chosen, rejected = values_and_gradients("mappo", gaps=[-1.0] * 4)
    assert chosen.any(-1).all() and not rejected.any()


@pytest.mark.parametrize(
    "spec", [spec for spec in EQUATIONS if "odpo" in spec or "rpo_reward" in spec or "mappo" in spec]
)
@pytest.mark.parametrize("gap", [0.0, 1e-38, -1e4, 1e4])
def test_hostile_scores(spec, gap):
    assert all(each.isfinite().all() for each in values_and_gradients(spec, gaps=[gap] * 4))
