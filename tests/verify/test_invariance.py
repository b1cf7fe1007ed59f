"""The invariance checks and extremes fail for a loss that reads padding, its place, its company, or overflows."""

import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from plo.losses import LOSSES, get_loss, register_loss
from plo.pairs import Pairs
from plo.verify import DESCRIBED, FAILED, NOT_APPLICABLE, PASSED, verify
from plo.verify.direction import directions

INVARIANCES = ("padding", "batch order", "batch split", "extremes")


def failed(target, **facts):
    """The invariance checks that a loss fails, by name."""
    register_loss(target.__name__, **{"needs": ("ref_logps",), **facts})(target)
    report = verify(get_loss(target.__name__), labels=False)
    return {check.name: check for check in report.checks if check.result == FAILED and check.name in INVARIANCES}


def test_reading_padding():
    """tensor.mean divides by the padded width: 6 columns and 9 give values that differ by the factor 6/9."""

    def padded_mean(pairs, *, beta: float = 2.0):
        return -beta * (pairs.chosen.log_ratios.mean(-1) - pairs.rejected.log_ratios.mean(-1))

    found = failed(padded_mean)
    assert set(found) == {"padding"}
    assert found["padding"].where.startswith("pair ") and "side.lengths" in found["padding"].remedy


def test_reading_the_place_in_the_batch():
    def by_place(pairs, *, beta: float = 0.1):
        return -logsigmoid(beta * pairs.log_ratio_margin()) * torch.arange(1, len(pairs) + 1)

    assert {"batch order", "batch split"} == set(failed(by_place))


def test_reading_the_company():
    """A margin that is centred over the batch survives reordering, and no split."""

    def centred(pairs, *, beta: float = 0.1):
        margin = beta * pairs.log_ratio_margin()
        return -logsigmoid(margin - margin.mean())

    found = failed(centred)
    assert set(found) == {"batch split"}
    assert 'level="batch"' in found["batch split"].remedy


def test_a_token_count_that_depends_on_the_company():
    def up_to_the_median(pairs):
        lengths = pairs.chosen.lengths
        few = torch.arange(pairs.chosen.mask.shape[1])[None] < lengths.median()
        return -pairs.chosen.logps, pairs.chosen.mask & few

    assert set(failed(up_to_the_median, level="token")) == {"batch split"}
    assert verify(get_loss("sft"), labels=False)["batch split"].result == PASSED


def test_batch_level_is_explained():
    def sorted_margins(pairs, *, beta: float = 0.1):
        chosen, rejected = pairs.chosen.log_ratio().sort().values, pairs.rejected.log_ratio().sort().values
        return -logsigmoid(beta * (chosen - rejected))

    assert failed(sorted_margins, level="batch") == {}
    report = verify(get_loss("sorted_margins"), labels=False)
    assert report["batch order"].result == PASSED
    for name in ("batch split", "policy recovery"):
        assert report[name].result == NOT_APPLICABLE and "batch" in report[name].meaning


def test_overflow():
    def exponential(pairs, *, beta: float = 1.0):
        return (-beta * pairs.log_ratio_margin()).exp()

    found = failed(exponential)
    assert set(found) == {"extremes"}
    assert "D(chosen) -1000 nats: value inf" in found["extremes"].where


def test_overflow_in_float32_alone_is_found_too():
    """R = exp(100) at beta .1: beyond float32's e^88, so that kliep wants a clip."""
    check = verify(get_loss("bpo(generator=kliep)"), labels=False)["extremes"]
    assert check.result == FAILED and "float32" in check.where and "clip" in check.remedy
    assert verify(get_loss("bpo(generator=kliep, clip=(1e-9, 1e9))"), labels=False)["extremes"].result == PASSED


def test_a_gradient_that_is_not_a_number():
    """log(1 + R) written as such: finite value by log1p, but 0 * inf in the gradient."""

    def naive(pairs, *, beta: float = 0.1):
        h = 10 * beta * pairs.log_ratio_margin()
        return torch.where(h < -30, -h, torch.log1p((-h).exp()))

    check = failed(naive)["extremes"]
    assert "gradient not finite" in check.where


def test_values_at_the_extremes_are_shown():
    """dpo at D(y_w) = -1000: -log sigma(-100) = 100 nats."""
    values = verify(get_loss("dpo"), labels=False)["extremes"].values
    assert values["D(chosen) -1000"] == pytest.approx(100)
    assert values["D(rejected) +1000"] == pytest.approx(100)
    assert values["D(chosen) +1000"] < 1e-40


def test_directions_by_hand():
    """ipo(reduction=sum, beta=.1), (h - 5)^2: falls in chosen where h < 5. On a grid of 21 steps of 2 nats h = 2k - 2l:
    flat nowhere (5 is odd); of the 441 points those with k - l >= 3 rise: (18 * 19) / 2 = 171."""
    check = verify(get_loss("ipo(reduction=sum)"), labels=False)["direction"]
    assert check.result == PASSED
    assert check.values["chosen otherwise"] == pytest.approx(171 / 441)
    assert check.values["rejected rises"] == pytest.approx(270 / 441)
    assert "rises on 39% (as at D_w" in check.meaning
    assert "everywhere" in verify(get_loss("dpo"), labels=False)["direction"].meaning
    assert "does not depend on the log-ratio of rejected" in verify(get_loss("sft"), labels=False)["direction"].meaning


@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("dpo", math.log(2)),
        ("ipo", 25.0),
        ("bpo(generator=lsif)", 0.0),
        ("bpo(generator=kliep)", 1.0),
        ("tdpo2", math.log(2)),
    ],
)
def test_step_0_by_hand(spec, value):
    check = verify(get_loss(spec), labels=False)["step 0"]
    assert check.values["value"] == pytest.approx(value, abs=1e-12)
    assert ("ln 2" in check.measured) == (value == math.log(2))


@pytest.mark.parametrize(
    ("spec", "ratio"),
    # the weights of the gradient at R = 1, over lr's .5; ipo(sum): 2 * 5 over beta / 2 = .05
    [("bpo(generator=lr)", 1), ("bpo(generator=kliep)", 4), ("bpo(generator=lsif)", 8), ("ipo(reduction=sum)", 200)],
)
def test_scale_by_hand(spec, ratio):
    assert verify(get_loss(spec), labels=False)["gradient scale"].values["ratio"] == pytest.approx(ratio)


@pytest.mark.parametrize("generator", ["kliep", "lsif", "ba, lam=0.0", "sba, lam=0.5"])
def test_generators_that_want_a_clip(generator):
    """R = exp(100) at beta .1 and D = -1000 nats; float32 ends at exp(88)."""
    assert verify(get_loss(f"bpo(generator={generator})"), labels=False)["extremes"].result == FAILED
    for mild in ("ba, lam=-0.5", "sba, lam=-0.5", "lr"):
        assert verify(get_loss(f"bpo(generator={mild})"), labels=False)["extremes"].result == PASSED


FLIPPED = ["dpo", "hinge", "ipo(reduction=sum)", "simpo", "confpo", "sft", "orpo", "tdpo1", "tbpo_a", "twdpo", "aot"]


@pytest.mark.parametrize("spec", FLIPPED)
def test_a_loss_turned_round_fails(spec):
    """Every family, its sides exchanged: it pulls the wrong way wherever it pulls."""
    right = get_loss(spec)

    def turned(pairs):
        return right(Pairs(chosen=pairs.rejected, rejected=pairs.chosen))

    turned.needs, turned.level = right.needs, right.level
    check = directions(get_loss(turned))
    assert check.result == FAILED, check
    assert "register the loss with against=(" in check.remedy


def test_a_loss_that_means_to_pull_the_other_way_says_so():
    def unlearning(pairs):
        return pairs.chosen.log_ratio() + pairs.rejected.log_ratio()

    assert directions(get_loss(unlearning)).result == FAILED
    unlearning.against = ("rejected",)  # the wrong side
    assert directions(get_loss(unlearning)).result == FAILED
    unlearning.against = ("chosen",)
    check = directions(get_loss(unlearning))
    assert check.result == DESCRIBED and "in chosen, as declared" in check.meaning

    def unlikelihood(pairs):  # on rejected responses alone
        return -torch.log1p(-0.5 * pairs.rejected.mean(pairs.rejected.logps).exp())

    assert directions(get_loss(unlikelihood)).result == PASSED


@pytest.mark.parametrize("entry", list(LOSSES), ids=lambda entry: entry.name)
def test_every_registered_loss_pulls_the_way_it_says(entry):
    loss = get_loss(entry.name)
    assert directions(loss).result == (DESCRIBED if loss.against else PASSED)
    assert (entry.name in ("apo_down", "squared_po", "true_advantage")) == bool(loss.against)
