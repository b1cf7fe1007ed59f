"""What a registration refuses: names, aliases and facts, each with the place and the remedy."""

import re

import pytest
import torch

from plo.backbone.token_statistics import register_statistic
from plo.losses import (
    LOSSES,
    LossError,
    get_loss,
    register_generator,
    register_loss,
)
from plo.registry import RegistryError
from plo.scorers import register_scorer
from plo.verify.inputs import make_pairs, make_statistics

PAIRS = make_pairs(make_statistics(("ref_logps", "kl_ref_pi")), ("ref_logps", "column:gap"))


def test_duplicates_name_both_origins():
    @register_loss("twice")
    def first(pairs):
        return pairs.chosen.logp()

    here = r".*test_registration.py:\d+"
    with pytest.raises(RegistryError, match=rf"'twice' is registered twice: {here} and {here}"):

        @register_loss("twice")
        def second(pairs):
            return -pairs.chosen.logp()

    register_loss("twice", replace=True)(lambda pairs: -pairs.chosen.logp())
    torch.testing.assert_close(get_loss("twice")(PAIRS), -PAIRS.chosen.logp())
    with pytest.raises(RegistryError, match=rf"registered twice: .*generators.py:\d+ and {here}"):

        @register_generator("sba")
        def h(R):
            return R**2


def test_an_alias_that_cannot_be():
    for taken in ("ipo", "sigmoid"):
        with pytest.raises(RegistryError, match=rf"'{taken}' is taken by .*\.py:\d+\): no alias of 'dpo'"):
            LOSSES.alias(taken, of="dpo")
    with pytest.raises(RegistryError, match="'better' cannot be an alias: there is no loss 'best'"):
        LOSSES.alias("better", of="best")
    with pytest.raises(RegistryError, match=r"'sigmoid' is registered twice: .*dpo.py:\d+ \(as an alias of 'dpo'\)"):
        register_loss("sigmoid")(lambda pairs: pairs.chosen.logp())
    register_loss("sigmoid", replace=True)(lambda pairs: pairs.chosen.logp())
    assert LOSSES["sigmoid"] is not LOSSES["dpo"]


@pytest.mark.parametrize(
    ("name", "better"),
    [
        ("my loss", "my_loss"),
        ("dpo-2", "dpo_2"),
        ("a+b", "a_b"),
        ("2dpo", "my_2dpo"),
        ("", "my"),
        ("lambda", "my_lambda"),
    ],
)
@pytest.mark.parametrize("register", [register_loss, register_generator, register_scorer], ids=lambda r: r.__name__)
def test_a_name_that_could_not_be_written_is_refused(register, name, better):
    with pytest.raises(RegistryError, match=re.escape(f"{name!r} cannot be the name of a")) as refused:
        register(name)(lambda given: given)
    assert f"such as {better!r}" in str(refused.value)


@pytest.mark.parametrize(
    "register", [register_loss, register_generator, register_scorer, register_statistic], ids=lambda r: r.__name__
)
def test_a_decorator_without_brackets_is_refused(register):
    """It would register nothing, and say nothing."""
    with pytest.raises(RegistryError, match=r"test_registration.py.* without a name: .*\(\"mine\"\)"):

        @register
        def mine(given):
            return given


def test_an_alias_that_could_not_be_written_is_refused():
    with pytest.raises(RegistryError, match="'d p o' cannot be the name of a loss"):
        LOSSES.alias("d p o", of="dpo")


@pytest.mark.parametrize(
    ("register", "given"), [(register_loss, "pairs"), (register_generator, "R"), (register_scorer, "material")]
)
def test_hyper_parameters_by_position_are_refused(register, given):
    with pytest.raises(
        RegistryError, match=rf"takes beta, other by position.*write a \* before them, \({given}, \*, beta="
    ):
        register("by_position")(lambda given, beta=0.1, other=2: given)
    with pytest.raises(RegistryError, match=f"takes no argument: it is called with {given}"):
        register("by_position")(lambda: None)


def test_hyper_parameters_by_position_of_a_module_and_of_a_plain_function():
    class Own(torch.nn.Module):
        def __init__(self, hidden_size, width=3):
            super().__init__()

    with pytest.raises(RegistryError, match=r"takes width by position.*\(hidden_size, \*, width="):
        register_loss("own")(Own)

    def plain(pairs, beta=0.1):
        return beta * pairs.chosen.logp()

    with pytest.raises(RegistryError, match="'plain' .* takes beta by position"):
        get_loss(plain)


@pytest.mark.parametrize("fact", ["needs", "detached", "against"])
def test_a_text_where_a_tuple_belongs_is_refused(fact):
    with pytest.raises(
        LossError, match=rf"{fact}='chosen' of the loss 'x' must be a tuple of names: {fact}=\('chosen',\)"
    ):
        register_loss("x", **{fact: "chosen"})
    register_loss("x", **{fact: lambda: "chosen"})(lambda pairs: pairs.chosen.logp())
    with pytest.raises(LossError, match="must be a tuple"):
        get_loss("x")


def test_a_side_that_there_is_not():
    with pytest.raises(LossError, match="'winner' is neither 'chosen' nor 'rejected'"):
        register_loss("x", against=("winner",))


def test_the_old_name_of_assumes():
    with pytest.warns(DeprecationWarning, match=r"register_loss\('old', model=...\): the argument is called assumes"):
        register_loss("old", model="chosen")(lambda pairs: -pairs.chosen.logp())
    assert get_loss("old").assumes == LOSSES["old"].facts.assumes == "chosen"
