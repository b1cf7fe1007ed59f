"""Optimal policies worked out here, from the tables and the definitions, and recovered; wrong losses miss them."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import logsigmoid

from plo.losses import get_loss, register_loss
from plo.losses.generators import Generator
from plo.verify import DESCRIBED, FAILED, NOT_APPLICABLE, PASSED, verify
from plo.verify.problems import BANDIT_REWARD, PROBLEMS, problem_of, variants
from plo.verify.recovery import minimise, policy_recovery, population

BPO = ["lr", "kliep", "lsif", "ba, lam=-0.5", "ba, lam=1.2", "sba, lam=-0.5", "sba, lam=0.0", "sba, lam=1.2"]


def normalised(weights):
    total = sum(weights)
    return [weight / total for weight in weights]


def sigma(x):
    return 1 / (1 + math.exp(-x))


def rows(log_policy):
    return log_policy.exp().tolist()


@pytest.mark.parametrize("given", ["optimal", "reference"])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_bandits_optimum_by_hand(beta, given):
    problem = PROBLEMS["bradley_terry"](beta, given)
    for ref, target, rewards in zip(rows(problem.ref), rows(problem.target), BANDIT_REWARD, strict=True):
        by_hand = normalised([p * math.exp(r / beta) for p, r in zip(ref, rewards, strict=True)])
        assert target == pytest.approx(by_hand, rel=1e-10)


def test_the_identity_models_optimum_by_hand():
    """pi* ~ ref exp(mean_b P(a > b) / beta), b one of the five."""
    problem = PROBLEMS["identity"](0.1)
    for ref, target, r in zip(rows(problem.ref), rows(problem.target), BANDIT_REWARD, strict=True):
        wins = [sum(sigma(r[a] - r[b]) for b in range(5)) / 5 for a in range(5)]
        by_hand = normalised([p * math.exp(win / 0.1) for p, win in zip(ref, wins, strict=True)])
        assert target == pytest.approx(by_hand, rel=1e-10)


def test_how_often_each_is_chosen_by_hand():
    for target, r in zip(rows(PROBLEMS["chosen"](1.0).target), BANDIT_REWARD, strict=True):
        wins = [sum(sigma(r[a] - r[b]) for b in range(5) if b != a) for a in range(5)]
        assert target == pytest.approx(normalised(wins), rel=1e-12)


@pytest.mark.parametrize("given", ["optimal", "reference"])
@pytest.mark.parametrize("model", ["token_q", "token_a", "advantage"])
def test_the_trees_optimum_by_enumeration(model, given):
    """Q(s,a) = E[r(y) | s, a, then ref] by summing over all 27 responses; pi* ~ ref exp(Q / beta) at every state."""
    problem, beta = PROBLEMS[model](0.3, given), 0.3
    ref, target = rows(problem.ref), rows(problem.target)
    reward = {y: math.sin(2.3 * i) for i, y in enumerate(itertools.product(range(3), repeat=3))}
    number = {(): 0} | {(a,): 1 + a for a in range(3)} | {(a, b): 4 + 3 * a + b for a in range(3) for b in range(3)}

    def probability(y, after):
        return math.prod(ref[number[y[:t]]][y[t]] for t in range(after, 3))

    q = {}
    for state in number:
        for a in range(3):
            begun = (*state, a)
            ends = [y for y in reward if y[: len(begun)] == begun]
            q[state, a] = sum(probability(y, len(begun)) * reward[y] for y in ends)
        by_hand = normalised([ref[number[state]][a] * math.exp(q[state, a] / beta) for a in range(3)])
        assert target[number[state]] == pytest.approx(by_hand, rel=1e-9)
    if model == "advantage":
        score = list(reward.values())
    else:
        value = {s: sum(ref[number[s]][a] * q[s, a] for a in range(3)) for s in number}
        score = [q[s, a] - (value[s] if model == "token_a" else 0) for s in number for a in range(3)]
    for a, b, p in zip(problem.first.tolist(), problem.second.tolist(), problem.p.tolist(), strict=True):
        assert p == pytest.approx(sigma(score[a] - score[b]), rel=1e-9)
    assert len(problem.p) == len(score) * (len(score) - 1) / 2  # every two of them
    assert problem.reward(problem.ref) == pytest.approx(sum(probability(y, 0) * r for y, r in reward.items()))


def test_the_population_is_the_sum_over_pairs_and_labels():
    """DPO at pi = ref is ln 2 whatever the labels; elsewhere by a loop over the pairs."""
    problem = PROBLEMS["bradley_terry"](0.1)
    loss = get_loss("dpo")
    assert float(population(loss, problem, problem.ref)) == pytest.approx(math.log(2))
    policy = problem.target
    ratio = (policy - problem.ref).reshape(-1).tolist()
    total = 0.0
    for a, b, p in zip(problem.first.tolist(), problem.second.tolist(), problem.p.tolist(), strict=True):
        h = 0.1 * (ratio[a] - ratio[b])
        total += -p * math.log(sigma(h)) - (1 - p) * math.log(sigma(-h))
    assert float(population(loss, problem, policy)) == pytest.approx(total / len(problem.p))


@pytest.mark.parametrize(
    "spec",
    [
        "dpo",
        "dpo(beta=0.005)",
        "dpo(beta=2)",
        "ipo(reduction=sum)",
        "sft",
        "tdpo1",
        "tdpo2(alpha=0)",
        "tbpo_a",
        "tbpo_q(center=False)",
    ]
    + [f"bpo(generator={generator})" for generator in BPO]
    + [f"tbpo_a(generator={generator})" for generator in BPO]
    + [f"tbpo_q(center=False, baseline_size=48, generator={generator})" for generator in BPO]
    + ["tbpo_a(detach_kl=True)", "bpo(clip=(0.01, 100))"],
)
def test_recovered(spec):
    check = policy_recovery(get_loss(spec))
    assert check.result == PASSED, check
    assert check.values["kl"] < 1e-8


def test_flipped_labels_with_the_loss_that_knows_it():
    """rDPO, arXiv 2403.00409: unbiased under flips with the probability it is told."""

    @register_loss("told", needs=("ref_logps",), assumes="flipped_bradley_terry")
    def told(pairs, *, beta: float = 0.1, label_smoothing: float = 0.1):
        margin, e = beta * pairs.log_ratio_margin(), label_smoothing
        return (-(1 - e) * logsigmoid(margin) + e * logsigmoid(-margin)) / (1 - 2 * e)

    assert policy_recovery(get_loss("told", label_smoothing=0.3)).result == PASSED
    assert minimise(get_loss("dpo"), problem_of("flipped_bradley_terry", 0.1, {"label_smoothing": 0.3})).kl > 0.1


def wrong_sign(pairs, *, beta: float = 0.1):
    return -logsigmoid(-beta * pairs.log_ratio_margin())


def beta_squared(pairs, *, beta: float = 0.1):
    return -logsigmoid(beta**2 * pairs.log_ratio_margin())


def chosen_only(pairs, *, beta: float = 0.1):
    return -logsigmoid(beta * pairs.chosen.log_ratio())


def endless(pairs, *, beta: float = 0.1):
    return -beta * pairs.log_ratio_margin()


def by_length(pairs, *, beta: float = 0.1):
    margin = pairs.chosen.mean(pairs.chosen.log_ratios) - pairs.rejected.mean(pairs.rejected.log_ratios)
    return -logsigmoid(beta * margin)


@pytest.mark.parametrize("loss", [wrong_sign, beta_squared, chosen_only, endless, by_length])
def test_a_wrong_loss_misses_its_models_optimum(loss):
    register_loss("wrong", needs=("ref_logps",), assumes="bradley_terry")(loss)
    check = policy_recovery(get_loss("wrong"))
    assert check.result == FAILED
    assert check.values["kl"] > 0.01
    assert check.where.startswith("expected reward") and check.remedy


def test_a_sign_flip_in_the_state_term_of_tbpo_a_fails():
    @register_loss("wrong_a", needs=("ref_logps", "kl_ref_pi"), assumes="token_a")
    def wrong_a(pairs, *, beta: float = 0.1):
        gap = pairs.rejected.kl_ref_pi - pairs.chosen.kl_ref_pi
        return -logsigmoid(beta * (pairs.chosen.log_ratios - pairs.rejected.log_ratios + gap)).sum(-1)

    check = policy_recovery(get_loss("wrong_a"))
    assert check.result == FAILED and check.values["kl"] > 0.01


@pytest.mark.parametrize("loss", ["bpo", "tbpo_a"])
def test_the_printed_lsif_recovers_nothing(loss):
    """R^2 - 2R has no gradient where pi is the reference: training never leaves it."""
    printed = Generator(lambda R: (R - 1).square(), lambda log_R: (2 * log_R).exp() - 2 * log_R.exp())
    check = policy_recovery(get_loss(loss, generator=printed))
    assert check.result == FAILED and check.values["kl"] > 1


def test_an_undeclared_loss_is_described():
    def mine(pairs, *, beta: float = 0.1):
        return -logsigmoid(beta * pairs.log_ratio_margin())

    check = policy_recovery(get_loss(mine))
    assert check.result == DESCRIBED and check.values["kl"] < 1e-8 and check.meaning.startswith("recovered")
    check = policy_recovery(get_loss(wrong_sign))
    assert check.result == DESCRIBED and check.meaning.startswith("not recovered")


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("simpo", "no reference"),
        ("orpo", "no reference"),
        ("ipo", "reduction=sum"),
        ("tdpo2", "gradient is stopped"),
        ("dpo(label_smoothing=0.1)", "log-odds"),
        ("tbpo_a(kl=k3)", "k3"),
        ("tbpo_q", "baseline"),
    ],
)
def test_what_has_no_such_optimum_says_why(spec, reason):
    check = policy_recovery(get_loss(spec))
    assert check.result == NOT_APPLICABLE and reason in check.meaning


def test_other_labels_are_described_with_known_answers():
    """Flips of 20% make DPO fit log-odds of .6 p + .2; a bias of .3 a token makes it reward r + .3 T."""
    report = verify(get_loss("dpo"))
    labels = {
        check.name.removeprefix("labels: "): check.values for check in report.checks if check.name.startswith("labels")
    }
    assert list(labels) == [
        "clean",
        "20% of labels flipped",
        "labels prefer the longer",
        "a cycle among three",
        "groups never compared",
    ]
    assert labels["clean"]["kl"] < 1e-8
    assert labels["clean"]["reward"] == pytest.approx(labels["clean"]["best"])
    problem = variants("bradley_terry", 0.1)["labels prefer the longer"]
    biased, kl = 0.0, 0.0
    for ref, target, r in zip(rows(problem.ref), rows(problem.target), BANDIT_REWARD, strict=True):
        lengths = (1, 4, 2, 3, 5)
        policy = normalised([p * math.exp((r[a] + 0.3 * lengths[a]) / 0.1) for a, p in enumerate(ref)])
        biased += sum(p * each for p, each in zip(policy, r, strict=True)) / 2
        kl = max(kl, sum(t * math.log(t / p) for t, p in zip(target, policy, strict=True)))
    assert labels["labels prefer the longer"]["reward"] == pytest.approx(biased, abs=1e-6)
    assert labels["labels prefer the longer"]["kl"] == pytest.approx(kl, rel=1e-4)


def test_a_loss_is_left_as_it_is():
    loss = get_loss("tbpo_q(baseline_size=8)")
    state = torch.get_rng_state()
    policy_recovery(loss)
    assert loss.module is None
    verify(loss, labels=False)
    assert loss.module is None and torch.equal(torch.get_rng_state(), state)
