"""Each closed form is its definition; the limits; the weights at R = 1; a generator of one's own."""

import functools
import math

import pytest
import torch

from plo.losses import GENERATORS, get_loss, register_generator
from plo.losses.generators import Generator, box_cox, get_generator
from plo.pairs import Pairs, Side

LOG_R = torch.linspace(-4, 4, 33, dtype=torch.float64)
LAMS = [-2.5, -1.0, -1 + 1e-7, -0.5, -1e-7, 0.0, 1e-7, 1e-6, 0.04, 0.5, 1.2, 3.0]
CASES = (
    [("lr", {}), ("kliep", {}), ("lsif", {})]
    + [("ba", {"lam": lam}) for lam in LAMS if lam > -1]
    + [("sba", {"lam": lam, "s": s}) for lam in LAMS for s in (1.0, 4.0)]
)


@pytest.fixture
def names():
    """Registrations made by a test end with it."""
    before = dict(GENERATORS._entries)
    yield
    GENERATORS._entries = before


def slope(function, log_R):
    log_R = log_R.clone().requires_grad_()
    return torch.autograd.grad(function(log_R).sum(), log_R)[0]


@pytest.mark.parametrize(("name", "params"), CASES)
def test_closed_form_is_the_definition(name, params):
    generator = get_generator(name, **params)
    assert generator.closed_form is not None
    torch.testing.assert_close(generator.loss(LOG_R), generator.definition(LOG_R), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope(generator.loss, LOG_R), slope(generator.definition, LOG_R), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(("name", "params"), CASES)
def test_constant_is_minus_h_at_one(name, params):
    generator = get_generator(name, **params)
    one = torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(generator.loss(one.log()), -generator.h(one), rtol=0, atol=1e-12)


PAPER_H = {
    "lr": lambda R, lam, s: (R * R.log() - (1 + R) * (1 + R).log()) / 2,
    "kliep": lambda R, lam, s: R * R.log() - R,
    "lsif": lambda R, lam, s: (R - 1) ** 2,
    "ba": lambda R, lam, s: (R ** (1 + lam) - R) / lam,
    "sba": lambda R, lam, s: (R ** (1 + lam) - R) / (s * lam * (1 + lam)),
}


@pytest.mark.parametrize("name", PAPER_H)
@pytest.mark.parametrize("lam", [-0.5, 0.5, 1.2])
def test_closed_form_comes_from_the_h_the_paper_prints(name, lam):
    """The registered h of sba differs from the printed one by an affine term; the loss does not."""
    printed = Generator(lambda R: PAPER_H[name](R, lam, 2.0))
    offered = {key: value for key, value in {"lam": lam, "s": 2.0}.items() if key in get_generator(name).free}
    torch.testing.assert_close(get_generator(name, **offered).loss(LOG_R), printed.loss(LOG_R))


def test_printed_lsif_is_not_the_definition():
    """R^2 - 2R as printed: no gradient at R = 1, and not the loss of (R - 1)^2 anywhere near."""
    printed = (2 * LOG_R).exp() - 2 * LOG_R.exp()
    gap = get_generator("lsif").definition(LOG_R) - printed
    assert (gap - gap.mean()).abs().max() > 1  # not a constant apart
    one = torch.zeros(1, dtype=torch.float64)
    assert slope(lambda x: (2 * x).exp() - 2 * x.exp(), one) == 0
    assert slope(get_generator("lsif").loss, one) == 4


@pytest.mark.parametrize("limit", [0.0, -1.0])
def test_sba_at_its_limits(limit):
    """(R + log R - 1) / s; the error shrinks in proportion to the distance of lam from its limit."""
    expected = (LOG_R.exp() + LOG_R - 1) / 4
    torch.testing.assert_close(get_generator("sba", lam=limit, s=4.0).loss(LOG_R), expected)
    for distance in (1e-4, -1e-4, 1e-8, -1e-8):
        near = get_generator("sba", lam=limit + distance, s=4.0).loss(LOG_R)
        # the derivative in lam is (x e^x - e^x + 1 + x^2/2)/s, at most 43 at x = 4
        assert (near - expected).abs().max() < 60 * abs(distance)


@pytest.mark.parametrize("lam", [0.3, -0.2, 1.2, 1e-7])
def test_sba_is_symmetric(lam):
    mirrored = get_generator("sba", lam=-1 - lam, s=4.0).loss(LOG_R)
    torch.testing.assert_close(get_generator("sba", lam=lam, s=4.0).loss(LOG_R), mirrored)


def test_ba_at_zero_is_kliep_and_its_limit_up_to_the_constant_one():
    kliep = get_generator("kliep").loss(LOG_R)
    torch.testing.assert_close(get_generator("ba", lam=0.0).loss(LOG_R), kliep)
    torch.testing.assert_close(get_generator("ba", lam=1e-9).loss(LOG_R) + 1, kliep)


@pytest.mark.parametrize("lam", [1e-6, -1e-6, 1e-3, 0.05, -0.5, -1 + 1e-6, 1e-40])
def test_float32_keeps_value_and_slope(lam):
    log_R = torch.linspace(-30, 30, 61)
    loss = get_generator("sba", lam=lam, s=4.0).loss
    torch.testing.assert_close(loss(log_R).double(), loss(log_R.double()), rtol=1e-5, atol=1e-6)
    # sba's slope is (R^(1+lam) + R^-lam)/s, by hand
    wanted = (torch.exp((1 + lam) * log_R.double()) + torch.exp(-lam * log_R.double())) / 4
    torch.testing.assert_close(slope(loss, log_R).double(), wanted, rtol=1e-5, atol=0)


def test_lr_does_not_overflow():
    log_R = torch.tensor([-1e4, 0.0, 1e4])
    torch.testing.assert_close(get_generator("lr").loss(log_R), torch.tensor([0.0, math.log(2), 1e4]))


@pytest.mark.parametrize("a", [0.0, 1e-300, 1e-7, 0.0624, 0.0626, 1.0, -2.0])
def test_box_cox(a):
    expected = [math.expm1(a * x) / a if a else x for x in LOG_R.tolist()]
    expected = torch.tensor(expected, dtype=torch.float64) if a != 1e-300 else LOG_R
    torch.testing.assert_close(box_cox(LOG_R, a), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("name", "params", "weight"),
    [("lr", {}, 0.5), ("kliep", {}, 2.0), ("lsif", {}, 4.0)]
    + [("ba", {"lam": lam}, 2 * (lam + 1)) for lam in (-0.5, 0.0, 0.5, 1.2)]
    + [("sba", {"lam": lam, "s": s}, 2 / s) for lam in (-1.0, -0.5, 0.0, 1e-7, 1.2) for s in (1.0, 4.0)],
)
def test_gradient_weight_at_one(name, params, weight):
    at_one = slope(get_generator(name, **params).loss, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(at_one, torch.tensor([weight], dtype=torch.float64))


def test_own_generator_from_h_alone(names):
    """h = R^p: h' R - h - h'(1/R) = (p-1) R^p - p R^(1-p); with p = 3: 2 R^3 - 3 / R^2."""

    @register_generator("mine")
    def h(R, *, p: float = 2.0):
        return R**p

    R = LOG_R.exp()
    torch.testing.assert_close(get_generator("mine").loss(LOG_R), R**2 - 2 / R)
    expected = 2 * R**3 - 3 / R**2
    forms = [
        get_generator("mine").configured(p=3.0),
        Generator(h, p=3.0),
        functools.partial(h, p=3.0),
        lambda R: R**3,
    ]
    for form in forms:
        torch.testing.assert_close(get_generator(form).loss(LOG_R), expected)
        torch.testing.assert_close(get_loss("bpo", generator=form, beta=1.0)(_pairs(LOG_R)), expected)
    assert h(torch.tensor(3.0)) == 9  # the decorator leaves the function as it is
    assert torch.autograd.gradcheck(get_generator("mine").loss, LOG_R.clone().requires_grad_())
    with torch.no_grad():
        torch.testing.assert_close(get_generator("mine").loss(LOG_R), R**2 - 2 / R)


def test_own_generator_trains_like_the_built_in():
    """lr from h alone: same value, same gradient in the policy's log-probabilities."""
    h = get_generator("lr").h
    values, gradients = [], []
    for generator in ("lr", lambda R: h(R)):
        log_R = LOG_R.clone().requires_grad_()
        loss = get_loss("bpo", generator=generator, beta=0.7)(_pairs(log_R))
        loss.sum().backward()
        values.append(loss.detach())
        gradients.append(log_R.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


def _pairs(log_R):
    """One token a pair, with beta h = -beta log R."""
    mask = torch.ones(len(log_R), 1, dtype=torch.bool)
    zeros = torch.zeros(len(log_R), 1, dtype=log_R.dtype)
    chosen = Side(mask=mask, logps=zeros, ref_logps=zeros, kl_ref_pi=zeros)
    rejected = Side(mask=mask, logps=log_R[:, None], ref_logps=zeros, kl_ref_pi=zeros)
    return Pairs(chosen=chosen, rejected=rejected)


def test_lam_and_s_reach_those_that_have_them(names):
    @register_generator("with_lam")
    def h(R, *, lam: float = 9.0):
        return lam * R**2

    pairs = _pairs(LOG_R)
    R = LOG_R.exp()
    ours = get_loss("bpo", generator="with_lam", lam=2.0, beta=1.0)(pairs)
    torch.testing.assert_close(ours, 2 * (R**2 - 2 / R))
    # a generator that has set its lam keeps it
    fixed = get_loss("bpo", generator=functools.partial(h, lam=5.0), beta=1.0)(pairs)
    torch.testing.assert_close(fixed, 5 * (R**2 - 2 / R))


@pytest.mark.parametrize("loss", ["bpo", "tbpo_a", "tbpo_q"])
def test_defaults_suit_every_generator_and_settings_without_effect_raise(loss):
    for entry in GENERATORS:
        assert get_loss(loss, generator=entry.name).params["generator"] == entry.name
    for params in ({"generator": "lr", "lam": 0.3}, {"generator": "ba", "s": 2.0}):
        with pytest.raises(ValueError, match=r"has no effect with .*leave (lam|s) at its default"):
            get_loss(loss, **params)
    with pytest.raises(ValueError, match="which sets it itself"):
        get_loss(loss, generator=get_generator("sba").configured(lam=0.1), lam=0.3)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"generator": "sbaa"}, "Did you mean 'sba'"),
        ({"generator": "ba", "lam": -1.0}, "must be > -1"),
        ({"s": 0.0}, "s=0.0 of the generator 'sba' must be > 0"),
        ({"generator": lambda R: R.sum()}, "elementwise"),
        ({"clip": (2.0, 1.0)}, "0 < low < high"),
        ({"clip": (-1.0, None)}, "0 < low < high"),
    ],
)
def test_mistakes_are_named_before_the_first_batch(params, message):
    with pytest.raises(ValueError, match=message):
        get_loss("bpo", **params)


def test_unknown_hyper_parameter_of_a_generator():
    with pytest.raises(ValueError, match=r"no hyper-parameter 'q'. It has: lam, s"):
        get_generator("sba").configured(q=1)
