"""KTO by hand and against TRL's KTOTrainer, and the completions of other prompts that it reads."""

from math import exp

import pytest
import torch

from plo.data import DataError, Pair
from plo.data.completions import Completions, completions, mismatched, register_completion
from plo.losses import get_loss
from plo.pairs import MissingStatistic, Pairs, Side

NAMES = ("mismatched(side=chosen)", "mismatched(side=rejected)")
NEEDS = tuple(f"completion:{name}" for name in NAMES)


def side(ratios):
    """Responses of one token whose log-ratios are these; the reference is at -10."""
    ref = torch.full((len(ratios), 1), -10.0, dtype=torch.float64)
    logps = ref + torch.tensor(ratios, dtype=torch.float64)[:, None]
    return Side(logps=logps, ref_logps=ref, mask=torch.ones(len(ratios), 1, dtype=torch.bool))


def pairs_of(chosen, rejected, *others):
    pairs = Pairs(chosen=side(chosen), rejected=side(rejected))
    return pairs.with_completions(dict(zip(NAMES, map(side, others), strict=True)))


def sigma(x):
    return 1 / (1 + exp(-x))


def test_kto_by_hand():
    """Others at 1, 3 and -2, 2: z = 1. beta .5, weights 2 and 3."""
    loss = get_loss("kto(beta=0.5, desirable_weight=2, undesirable_weight=3)").build(1).double()
    pairs = pairs_of([2.0, 0.0], [-1.0, 4.0], [1.0, 3.0], [-2.0, 2.0])
    loss.update(loss.observe(pairs))
    value = loss.evaluate(pairs)
    expected = [2 * (1 - sigma(0.5 * (w - 1))) + 3 * (1 - sigma(0.5 * (1 - r))) for w, r in ((2, -1), (0, 4))]
    assert value.values.tolist() == pytest.approx(expected, abs=1e-9)
    assert value.metrics["baseline"].tolist() == [1, 1]
    assert value.metrics["margin"].tolist() == pytest.approx([1.5, -2.0])


def test_the_baseline_is_no_less_than_0_and_that_of_the_last_step_alone():
    loss, pairs = get_loss("kto").build(1).double(), pairs_of([2.0], [-1.0], [-1.0], [-3.0])
    loss.update({"chosen": torch.tensor([5.0]), "rejected": torch.tensor([5.0])})
    loss.update(loss.observe(pairs))
    assert loss.module.baseline.item() == 0


def test_a_completion_that_is_missing_is_named():
    with pytest.raises(MissingStatistic, match=r"needs=\('completion:mismatched\(side=chosen\)'"):
        pairs_of([1.0], [0.0], [0.0], [0.0]).only(("ref_logps",)).completions[NAMES[0]]


def pair(prompt, chosen, rejected):
    return Pair(tuple(prompt), tuple(chosen), tuple(rejected), "", "", {})


def test_mismatched_takes_the_next_pair_of_another_prompt_around_the_end():
    pairs = [pair([1], [10], [20]), pair([1], [11], [21]), pair([2], [12], [22]), pair([1], [13], [23])]
    assert mismatched(pairs, side="chosen") == [(12,), (12,), (13,), (12,)]
    assert mismatched(pairs, side="rejected") == [(22,), (22,), (23,), (22,)]


def test_mismatched_of_one_prompt_is_an_error():
    with pytest.raises(DataError, match="All 2 training pairs have one prompt"):
        mismatched([pair([1], [10], [20]), pair([1], [11], [21])], side="chosen")


def test_completions_are_cut_to_the_longest_sequence_of_the_data():
    pairs = [pair([1, 1, 1], [10], [20, 20]), pair([2], [12, 12, 12, 12], [22])]
    assert completions(pairs, NEEDS) == [
        Completions((1, 1, 1), ((12, 12), (22,))),
        Completions((2,), ((10,), (20, 20))),
    ]
    assert completions(pairs, ("ref_logps",)) is None


def test_a_provider_of_ones_own():
    @register_completion("own_chosen")
    def own_chosen(pairs):
        return [pair.chosen_ids for pair in pairs]

    (found,) = completions([pair([1], [10, 11], [20])], ("completion:own_chosen",))
    assert found.responses == ((10, 11),)


@pytest.mark.parametrize("packed", [False, True])
def test_completions_under_policy_and_cached_reference(packed, tiny_llama, tiny_pairs, tmp_path):
    """As the model's own forward pass over prompt and completion has them, packed or not, and with no gradient."""
    from plo.backbone.micro_batches import TrainingPairs
    from plo.backbone.model import Backbone
    from plo.backbone.reference import ReferenceStore
    from plo.config import ModelConfig

    backbone, pairs = Backbone(tiny_llama(), ModelConfig(peft="full")), tiny_pairs(3)
    backbone.use_packed(packed)
    backbone.reset(0, get_loss("kto"))
    backbone.double()
    reference = ReferenceStore(tmp_path).for_loss(backbone, pairs, backbone.loss.needs)
    with torch.no_grad():
        for parameter in backbone.policy_parameters():
            parameter.mul_(1.1)
    data = TrainingPairs(backbone, pairs, reference, None, 3)
    found = backbone.completions(backbone.with_completions(data.batch([2, 0])))
    backbone.use_packed(False)  # for the forward pass by hand
    assert list(found) == list(NAMES)
    for name, which in zip(NAMES, ("chosen", "rejected"), strict=True):
        for row, i in enumerate((2, 0)):
            ids = mismatched(pairs, side=which)[i]
            models = {"logps": backbone.causal_lm, "ref_logps": tiny_llama()}
            for statistic, model in models.items():
                values = found[name][statistic][row]
                assert not values.requires_grad
                with torch.no_grad():
                    expected = by_hand(model, pairs[i].prompt_ids, ids)
                torch.testing.assert_close(values[: len(ids)], expected, atol=1e-9, rtol=0)
                assert (values[len(ids) :] == 0).all()


def by_hand(model, prompt, ids):
    logits = model(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[range(len(ids)), list(ids)]
