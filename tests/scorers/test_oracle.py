"""Scorers of trained models: golden transforms, and weights computed again from the equations."""

import json
import os
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from plo.data import Pair
from plo.scorers import get_scorer
from plo.scorers.oracle import clipped, ranks, scaled, top_share

GOLDEN = Path(os.environ.get("PLO_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no golden values in {GOLDEN} (PLO_GOLDEN)")


EOS = 9
ENDS_IN_9 = SimpleNamespace(eos_token_id=EOS, added_tokens_decoder={})


def tis_by_the_equation(ids, plus, minus, sign, low=0.7, high=1.3):
    """Rank of a token: how many tokens lie below it, or are equal to it and stand before it. 0 from EOS on."""
    raw = [sign * (p - m) for p, m in zip(plus, minus, strict=True)]
    n = len(raw)
    ranked = [sum(other < x or (other == x and j < i) for j, other in enumerate(raw)) for i, x in enumerate(raw)]
    weights = [low + (high - low) * rank / (n - 1) for rank in ranked] if n > 1 else [1.0]
    end = ids.index(EOS) if EOS in ids else n
    return [*weights[:end], *[0.0] * (n - end)]


@needs_golden
@pytest.mark.parametrize(
    ("case", "transform"),
    [
        ("rank_based_default", lambda raw: ranks(raw, 0.7, 1.3)),
        ("rank_based_0p5_1p5", lambda raw: ranks(raw, 0.5, 1.5)),
        ("rank_based_default_of_negated", lambda raw: ranks(-raw, 0.7, 1.3)),
        ("binary_top_50_percent", lambda raw: top_share(raw, 0.5)),
        ("threshold", lambda raw: clipped(raw, -1, 1)),
        ("threshold_and_scale", lambda raw: scaled(raw, -1.5, 1.5, 0.7, 1.3)),
    ],
)
def test_transforms_are_the_released_ones(case, transform):
    stored = json.loads((GOLDEN / "tisdpo_weights.json").read_text())
    for raw, expected in zip(stored["inputs"]["raw_weights"], stored["outputs"]["by_transform"][case], strict=True):
        got = transform(torch.tensor(raw, dtype=torch.float64))
        assert got.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-11)


def test_tis_rank_is_the_equation(material, tiny_pairs):
    pairs = tiny_pairs(60)
    made = material(pairs, ("positive", "negative"), tokenizer=ENDS_IN_9)
    assert sum(EOS in pair.chosen_ids[:-1] for pair in pairs) > 5  # what follows EOS is tried
    scores = get_scorer("tis_rank")(made)
    stages = (made.stages["positive"], made.stages["negative"])
    for pair, got, plus, minus in zip(pairs, scores, *stages, strict=True):
        for side, (ids, sign) in enumerate(((pair.chosen_ids, 1), (pair.rejected_ids, -1))):
            expected = tis_by_the_equation(ids, plus[side].tolist(), minus[side].tolist(), sign)
            assert got[side].tolist() == pytest.approx(expected, rel=1e-6)


def test_tis_rank_in_words(material):
    """By hand: chosen log-ratios 2, -1, 0, 5 rank 2, 0, 1, 3; EOS then has weight 0. Rejected: the reverse."""
    pair = Pair((2,), (5, 6, 7, EOS), (5, 6, 8, EOS), "", "here", {})
    ratio = torch.tensor([2.0, -1.0, 0.0, 5.0])
    made = material([pair], tokenizer=ENDS_IN_9)
    made.stages = {"positive": [(ratio - 6, ratio - 6)], "negative": [(torch.full((4,), -6.0),) * 2]}
    chosen, rejected = next(get_scorer("tis_rank")(made))
    assert chosen.tolist() == pytest.approx([1.1, 0.7, 0.9, 0.0])
    assert rejected.tolist() == pytest.approx([0.9, 1.3, 1.1, 0.0])
    binary = next(get_scorer("tis_rank(transform=binary)")(made))
    assert [part.tolist() for part in binary] == [[1, 0, 0, 0], [0, 1, 1, 0]]
    cut = next(get_scorer("tis_rank(transform=threshold, clip=1.0)")(made))
    assert [part.tolist() for part in cut] == [[1, -1, 0, 0], [-1, 1, 0, 0]]
    linear = next(get_scorer("tis_rank(transform=threshold_and_scale)")(made))
    assert linear[0].tolist() == pytest.approx([1.3, 0.8, 1.0, 0.0])


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("Yes.<|im_end|>\n", "Yes."),  # as ChatML writes a turn: a newline follows its end
        ("Yes.<|endoftext|>", "Yes."),  # a turn that ends in another special token than EOS
        ("Yes, it", "Yes, it"),  # cut by truncation: no end to leave out
    ],
)
def test_tis_rank_leaves_out_the_end_of_a_turn(material, make_tokenizer, answer, kept):
    tokenizer = make_tokenizer()
    ids = tuple(tokenizer(answer)["input_ids"])
    pair = Pair((2,), ids, ids, "", "here", {})
    made = material([pair], ("positive", "negative"), tokenizer=tokenizer)
    counted = len(tokenizer(kept)["input_ids"])
    for weights in next(get_scorer("tis_rank")(made)):
        assert (weights != 0).tolist() == [True] * counted + [False] * (len(ids) - counted)


def test_top_share_keeps_ties_together():
    rng = random.Random(0)
    for _ in range(100):
        raw = [rng.randrange(4) for _ in range(rng.randrange(1, 9))]
        room = len(raw) // 2
        expected = [float(sum(other >= x for other in raw) <= room) for x in raw]
        assert top_share(torch.tensor(raw, dtype=torch.float64), 0.5).tolist() == expected


def test_log_ratio_is_the_oracles_reward(material, tiny_pairs):
    made = material(tiny_pairs(5), ("oracle", "oracle.reference"))
    for i, got in enumerate(get_scorer("log_ratio")(made)):
        for side in (0, 1):
            difference = made.stages["oracle"][i][side] - made.stages["oracle.reference"][i][side]
            assert got[side].tolist() == pytest.approx(difference.tolist(), abs=1e-6)


@needs_golden
def test_tgdpo_and_d2po_losses_are_the_released_ones(material):
    """The released losses, from the common log-probs: -log sigma of beta sum a_t D_t (chosen) less the same (rejected)."""
    golden = {name: json.loads((GOLDEN / f"{name}.json").read_text()) for name in ("common", "tgdpo", "d2po")}
    common = golden["common"]
    lengths = common["chosen_response_lengths"] + common["rejected_response_lengths"]

    def logps(which, row):
        logits = torch.tensor(common[f"{which}_logits"][row], dtype=torch.float64).log_softmax(-1)
        start = (common["prompt_lengths"] * 2)[row]
        return torch.stack([logits[t - 1, common["input_ids"][row][t]] for t in range(start, start + lengths[row])])

    def guide(row):
        start = (common["prompt_lengths"] * 2)[row] - 1
        values = golden["tgdpo"]["inputs"]["reward_model_per_token_logps"][row]
        return torch.tensor(values[start : start + lengths[row]], dtype=torch.float64)

    def losses(weights, beta):
        margins = []
        for i in range(4):
            sides = [(weights[i][s] * (logps("policy", i + 4 * s) - logps("reference", i + 4 * s))) for s in (0, 1)]
            margins.append(beta * (sides[0].sum() - sides[1].sum()))
        return -torch.nn.functional.logsigmoid(torch.stack(margins))

    made = material([Pair((0,), (0,) * lengths[i], (0,) * lengths[i + 4], "", "", {}) for i in range(4)])
    made.stages = {
        "oracle": [(guide(i), guide(i + 4)) for i in range(4)],
        "oracle.reference": [(logps("reference", i), logps("reference", i + 4)) for i in range(4)],
    }
    # Scorer.__call__ gives float32; the function behind it keeps float64.
    for case, alpha, beta in [
        ("alpha_0p5_beta_0p1", 0.5, 0.1),
        ("alpha_0p5_beta_0p5", 0.5, 0.5),
        ("alpha_0_beta_0p1", 0.0, 0.1),
    ]:
        weights = list(get_scorer("tgdpo").entry.load()(made, alpha=alpha, beta=beta))
        expected = golden["tgdpo"]["outputs"][case]["losses"]
        assert losses(weights, beta).tolist() == pytest.approx(expected, rel=1e-9)
    for gamma in (0.98, 0.9, 1.0):
        weights = list(get_scorer("position_decay").entry.load()(made, gamma=gamma))
        released = golden["d2po"]["outputs"][f"gamma_{gamma}"]["sigmoid"]["losses"]
        assert losses(weights, 0.1).tolist() == pytest.approx(released, rel=1e-9)


def test_what_is_trained_first():
    stages = get_scorer("log_ratio(model=small, share=0.25, oracle_beta=0.2, oracle_lr=1e-6)").stages
    assert list(stages) == ["oracle"]
    oracle = stages["oracle"]
    assert (oracle.loss, oracle.model, oracle.share, oracle.reversed) == ({"dpo": {"beta": 0.2}}, "small", 0.25, False)
    assert oracle.train == {"lr": 1e-6}
    assert get_scorer("log_ratio").stages["oracle"].train == {} and get_scorer("log_ratio").params["share"] == 0.5
    stages = get_scorer("tis_rank").stages
    assert {name: stage.reversed for name, stage in stages.items()} == {"positive": False, "negative": True}
    assert get_scorer("tgdpo(beta=0.3)").stages["oracle"].loss == {"dpo": {"beta": 0.1}}


@pytest.mark.parametrize(
    "wrong",
    ["log_ratio(share=0)", "log_ratio(oracle_lr=-1)", "tis_rank(transform=softmax)", "tis_rank(clip=0)"],
)
def test_ranges(wrong):
    with pytest.raises(ValueError, match="of the token scorer"):
        get_scorer(wrong)
