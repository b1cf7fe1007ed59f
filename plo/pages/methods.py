"""Facts of the built-in methods, read from the registries and docstrings; the templates of the pages ask for them."""

import re
from collections.abc import Mapping
from typing import Any

from plo.backbone.token_statistics import needs_reference, statistic_of
from plo.configured import shown
from plo.data.completions import provider_of
from plo.docstring import Docstring, read_docstring
from plo.losses import LOSSES, get_loss
from plo.registry import Entry, Registry, hyper_parameters
from plo.scorers import RECIPES, SCORERS, Variant, get_variant
from plo.scorers.recipe import BUILT_IN

FAMILIES = {  # of the index, by what a method needs, so that a new one finds its place; the first that holds counts
    "Baseline": lambda variant: variant.loss.level == "token",
    "Recipes: a loss with a token scorer": lambda variant: variant.registered_name in RECIPES,
    "On weighted or chosen tokens": lambda variant: "weights" in variant.needs,
    "Over the batch": lambda variant: variant.loss.level == "batch",
    "On log-ratios of whole responses": lambda variant: variant.needs == ("ref_logps",),
    "On scores of the data set": lambda variant: bool(columns(variant)),
    "Without a reference": lambda variant: "ref_logps" not in variant.needs,
    "With more statistics of every token": lambda variant: True,
}


def built_in(registry: Registry[Any]) -> list[Entry[Any]]:
    """List the entries that plo itself registers."""
    return [entry for entry in registry if module(entry).startswith("plo.")]


def built_in_methods() -> list[Entry[Any]]:
    """List the built-in losses and recipes, in alphabetical order."""
    return sorted([*built_in(LOSSES), *(RECIPES[name] for name in BUILT_IN)], key=lambda entry: entry.name)


def module(entry: Entry[Any]) -> str:
    """Return the module that defines an entry."""
    return getattr(entry.load(), "__module__", "")


def families() -> dict[str, list[Entry[Any]]]:
    """Sort the built-in losses and recipes into the families of the index."""
    found: dict[str, list[Entry[Any]]] = {name: [] for name in FAMILIES}
    for entry in built_in_methods():
        variant = get_variant(entry.name)
        found[next(name for name, holds in FAMILIES.items() if holds(variant))].append(entry)
    return found


def parts(entry: Entry[Any]) -> list[Entry[Any]]:
    """Return what a method consists of: of a recipe the scorer, which is what its paper proposes, and the loss."""
    recipe = entry.load()
    return [SCORERS[recipe.scorer], LOSSES[recipe.loss]] if entry.name in RECIPES else [entry]


def facts(entry: Entry[Any], parts: list[Entry[Any]]) -> dict[str, Any]:
    """Collect what the page of a method needs; where several docstrings describe a hyper-parameter, the first counts."""
    docs = [read_docstring(part.load()) for part in parts]
    meanings = {key: text for doc in reversed(docs) for key, text in doc.args.items()}
    parameters = [(name, default, meanings.get(name, "")) for name, default in defaults(entry).items()]
    return {"entry": entry, "name": entry.name, "parts": parts, "docs": docs, "parameters": parameters}


def idea(entry: Entry[Any]) -> str:
    """Return the first sentence of a docstring, without its full stop."""
    return read_docstring(entry.load()).summary.rstrip(".")


def statistic(need: str) -> str:
    """Describe a registered statistic; "" for what is none, such as the weights."""
    if (entry := statistic_of(need)) is None:
        return ""
    doc = read_docstring(entry.load())
    return doc.summary or doc.formula


def completion(need: str) -> str:
    """Describe completions that are not the pairs' own; "" for what is none."""
    if (entry := provider_of(need)) is None:
        return ""
    doc = read_docstring(entry.load())
    return doc.summary or doc.formula


def compares_distributions(need: str) -> bool:
    """Return whether a need is a statistic of the whole distributions of policy and reference."""
    return needs_reference([need])


def reads_reference(variant: Variant) -> bool:
    """Return whether a variant needs the reference model."""
    return any(need == "ref_logps" or compares_distributions(need) for need in variant.needs)


def columns(variant: Variant) -> list[str]:
    """List the needs of a variant that are columns of the data set."""
    return [need for need in variant.needs if need.startswith("column:")]


def users(scorer: str) -> list[str]:
    """List the built-in recipes made with a scorer, and the losses whose default it is."""
    variants = {entry.name: get_variant(entry.name) for entry in built_in_methods()}
    return [name for name, variant in variants.items() if variant.scorer and variant.scorer.entry.name == scorer]


def takers_of_generators() -> list[str]:
    """List the built-in losses that take a Bregman generator."""
    return [entry.name for entry in built_in(LOSSES) if "generator" in hyper_parameters(entry.load())]


def defaults(entry: Entry[Any]) -> dict[str, str]:
    """Return the default of each hyper-parameter, as it is written."""
    return {name: shown(parameter.default) for name, parameter in hyper_parameters(entry.load()).items()}


def some_parameters(entry: Entry[Any], most: int = 2) -> dict[str, str]:
    """Choose a few hyper-parameters that have a default, to show how they are set."""
    items = hyper_parameters(entry.load()).items()
    return dict([(key, shown(p.default)) for key, p in items if p.default is not None][:most])


def call(name: str, parameters: Mapping[str, str]) -> str:
    """Write a loss or scorer with hyper-parameters, as the command line takes it."""
    return f"{name}({', '.join(f'{key}={value}' for key, value in parameters.items())})" if parameters else name


def use_of_scorer(entry: Entry[Any], doc: Docstring) -> str:
    """Write a variant that uses a scorer: its recipe, or a loss that takes it, by default or in the words of its docstring."""
    parameters = some_parameters(entry)
    if recipes := [name for name in sorted(BUILT_IN) if RECIPES[name].load().scorer == entry.name]:
        return call(recipes[0], parameters)
    takers = [name for name in users(entry.name) if name in LOSSES and LOSSES[name].facts.scorer == entry.name]
    named = [name for name in re.findall(r"`(\w+)`", doc.sections["Idea"]) if name in LOSSES]
    takers += [name for name in named if "weights" in get_loss(name).needs]
    return f"{[*takers, 'twdpo'][0]}(scorer={call(entry.name, parameters)})"


def source(entry: Entry[Any], doc: Docstring) -> str:
    """Return where a method comes from; the arXiv number is added where the docstring leaves it out."""
    paper = entry.facts.paper
    text = doc.sections.get("Source") or f"No paper ({paper})."
    number = re.match(r"[\d.]+", paper)
    return text if not number or number[0] in text else f"arXiv {number[0]}. {text[:1].upper()}{text[1:]}"
