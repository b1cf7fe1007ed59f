"""Search spaces: every built-in loss and recipe has one in which it can be tuned, and its page says so."""

import pytest

from plo.losses import LOSSES, register_loss
from plo.pages import pages
from plo.pages.methods import built_in_methods
from plo.scorers import RECIPES, get_variant
from plo.scorers.space import at_point, search_space, strength_space

NAMES = [entry.name for entry in built_in_methods()]
PAGES = pages()
# A quarter to four times the authors' value, by hand; what is not here has the .1 of DPO.
STRENGTHS = {
    "sft": {},
    "sepo": {"gamma": (0.5, 8)},
    "simpo": {"beta": (0.5, 8)},
    "alphapo": {"beta": (0.5, 8)},
    "asft": {"beta": (0.25, 4)},
    "true_advantage": {"beta": (0.25, 4)},
    "confpo": {"beta": (0.375, 6)},
    "sigmoid_norm": {"beta": (1.25, 20)},
    "exo_pair": {"beta": (0.125, 2)},
    "discopop": {"beta": (0.0125, 0.2)},
    "nca_pair": {"beta": (0.0025, 0.04)},
    "wpo": {"beta": (0.0025, 0.04)},
    "attention_po": {"beta": (0.00125, 0.02)},
    "sppo_hard": {"beta": (0.00025, 0.004)},
    "cal_dpo": {"beta": (0.00025, 0.004)},
    "chi_po": {"beta": (0.0125, 0.2)},
    "rpo_reward": {"beta": (0.05, 0.8)},
    "alpha_dpo": {"beta": (0.625, 10)},
    "epsilon_dpo": {"beta": (0.0025, 0.04)},
}


@pytest.mark.parametrize("name", NAMES)
def test_every_method_can_be_tuned_in_a_range_around_its_authors_value(name):
    variant = get_variant(name)
    wanted = STRENGTHS.get(name, {"beta": (0.025, 0.4)})
    space = strength_space(variant)
    assert space.keys() == wanted.keys()
    for key, ends in wanted.items():
        assert space[key] == pytest.approx(ends) and ends[0] < variant.params[key] < ends[1]
    for place in (0, 1):
        at_point(variant, {key: ends[place] for key, ends in search_space(variant, 1e-3).items()})
    text = "".join(f"`{key}` from {low:g} to {high:g}, and " for key, (low, high) in wanted.items())
    assert f"Tuned: {text}the learning rate{'' if wanted else ' alone'}.\n" in PAGES[f"{name}.md"]


def test_a_range_that_is_declared_later_changes_no_key():
    def strong(pairs, *, power: float = 2.0):
        return -power * pairs.log_ratio_margin()

    keys = []
    for search in (None, {"power": (1.0, 9.0)}):
        register_loss("strong", needs=("ref_logps",), search=search, replace=True)(strong)
        keys.append(get_variant("strong").source)
    assert keys[0] == keys[1]
    assert {*LOSSES.names(), *RECIPES.names()} >= {*NAMES}
