"""What is said of a loss whose target its training did not come near."""

import pytest

from plo import get_loss
from plo.backbone.targets import short_of_target


def log(margins, name="loss/margin"):
    return [{"step": step, name: margin, "loss": 1.0} for step, margin in enumerate(margins, 1)]


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("ipo", 5),
        ("ipo(beta=0.5, reduction=sum)", 1),
        ("twdpo(loss_type=ipo, beta=0.01)", 50),
        ("attention_po(loss_type=ipo)", 100),
        ("wpo(base=ipo, beta=0.25)", 2),
        ("twdpo", None),
        ("wpo", None),
        ("dpo", None),
        ("sppo_hard", None),  # far targets are what its authors want
    ],
)
def test_the_targets(spec, target):
    assert get_loss(spec).target_margin == (target if target is None else pytest.approx(target))


def test_of_the_last_tenth_of_the_steps():
    """20 steps: the last two count. Under a tenth of 5 is said, a tenth is not; what came before does not matter."""
    loss = get_loss("ipo")
    (note,) = short_of_target(loss, log([9.0] * 18 + [0.4, 0.5]), 20)
    assert "ipo ends at a mean margin of 0.45, under a tenth of its target of 5:" in note
    assert short_of_target(loss, log([0.0] * 18 + [0.5, 0.6]), 20) == []
    assert len(short_of_target(loss, log([-3.0]), 1)) == 1  # of one step, that one
    assert len(short_of_target(loss, [{"step": 20, "loss/margin": 0.1}, {"step": 20, "train_runtime": 1.0}], 20)) == 1
    assert short_of_target(get_loss("dpo"), log([0.0] * 20), 20) == []


def test_each_term_of_a_sum_by_its_own_name():
    loss = get_loss("dpo + ipo(beta=0.5) + 0.1*sft")
    (note,) = short_of_target(loss, log([0.05] * 10, "ipo(beta=0.5)/margin"), 10)
    assert note.startswith("ipo(beta=0.5) ends")
