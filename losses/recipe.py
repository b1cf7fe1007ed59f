"""Recipes: a loss and the token scorer that a paper has for it, registered under the paper's name."""

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from plo.configured import hints_of
from plo.losses.loss import LOSSES
from plo.pairs import Pairs
from plo.registry import Entry, hyper_parameters
from plo.scorers import SCORERS, Scorer, get_scorer


class Recipe:
    """A loss whose weights come from one scorer. Its hyper-parameters are those of both; one that both have goes to both.

    Args:
        loss, scorer: registered names.
        defaults: of hyper-parameters whose defaults are other ones here.
    """

    def __init__(self, loss: str, scorer: str, defaults: Mapping[str, Any]):
        self.loss, self.scorer, self.defaults = LOSSES.early(loss), SCORERS.early(scorer), defaults

    @property
    def __signature__(self) -> inspect.Signature:
        own = {**hyper_parameters(self.scorer.load()), **hyper_parameters(self.loss.load())}
        parameters = [p.replace(default=self.defaults.get(name, p.default)) for name, p in own.items()]
        return inspect.Signature([inspect.Parameter("pairs", inspect.Parameter.POSITIONAL_OR_KEYWORD), *parameters])

    @property
    def hints(self) -> dict[str, Any]:
        return {**hints_of(self.scorer.load()), **hints_of(self.loss.load())}

    def __call__(self, pairs: Pairs, **params: Any) -> Any:
        return self.loss.load()(pairs, **_of(self.loss, params))

    def configured_scorer(self, params: Mapping[str, Any]) -> Scorer:
        return get_scorer(self.scorer.name, **_of(self.scorer, params))

    def __repr__(self) -> str:
        return f"{self.loss.name} + {self.scorer.name}"


def register_recipe(name: str, *, loss: str, scorer: str, paper: str, replace: bool = False, **defaults: Any) -> None:
    """Register a loss with its token scorer as a method of its own.

    Example:
        >>> register_recipe("half", loss="twdpo", scorer="first_half", paper="mine", share=0.25)  # doctest: +SKIP
    """
    recipe = Recipe(loss, scorer, defaults)
    recipe.__module__ = sys._getframe(1).f_globals["__name__"]  # who made it, as functions and classes know it
    facts = dataclasses.replace(recipe.loss.facts, paper=paper, recipe=(loss, scorer))
    LOSSES.register(name, recipe, facts=facts, replace=replace)


def _of(entry: Entry, params: Mapping[str, Any]) -> dict[str, Any]:
    known = hyper_parameters(entry.load())
    return {name: value for name, value in params.items() if name in known}
