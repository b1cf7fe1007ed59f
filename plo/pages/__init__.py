"""A page for each method, written from the registries and docstrings: what `plo docs` writes to docs/methods.

The words of a page are in `templates/`; the facts in them are found by `plo.pages.methods`, and written as Markdown by
`plo.pages.markdown`. Measured costs are read from `measured.json`, which `benchmarks/backbone.py --record` writes.
"""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from plo.docstring import cell, read_docstring
from plo.losses import GENERATORS, LOSSES
from plo.losses.register import PREFERENCE_MODELS
from plo.pages import methods
from plo.pages.markdown import Page, code
from plo.registry import Entry, hyper_parameters
from plo.scorers import RECIPES, SCORERS, get_scorer, get_variant

COMMAND = "plo docs --out docs/methods"
MARK = f"<!-- Written by `{COMMAND}`; to change it, change the docstring. -->"
MEASURED = Path(__file__).with_name("measured.json")


def pages() -> dict[str, str]:
    """Return every page by its path in the folder; plug-ins that are loaded have none."""
    templates = Environment(
        loader=PackageLoader("plo.pages"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    templates.filters |= {"cell": cell, "code": code}
    templates.globals |= {"mark": MARK}

    def render(template: str, **facts: Any) -> str:
        text = templates.get_template(f"{template}.md").render(**facts)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    found = {"README.md": render("index", **_index()), "generators.md": render("generators", **_generators())}
    found |= {f"{entry.name}.md": render("loss", **_method(entry)) for entry in methods.built_in_methods()}
    scorers = methods.built_in(SCORERS)
    return found | {f"scorers/{entry.name}.md": render("scorer", **_scorer(entry)) for entry in scorers}


def write(folder: Path) -> list[Path]:
    """Write all pages, delete those of methods that no longer exist, and return the paths of all pages."""
    written = pages()
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in written and path.read_text(encoding="utf-8").startswith(MARK):
            path.unlink()
    for name, text in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def _method(entry: Entry) -> dict[str, Any]:
    """Collect the facts of a loss or recipe. Of a recipe the scorer comes first: it is what the paper proposes."""
    recipe = entry.name in RECIPES
    parts = [SCORERS[entry.load().scorer], LOSSES[entry.load().loss]] if recipe else [entry]
    docs = [read_docstring(part.load()) for part in parts]
    variant = get_variant(entry.name)
    return {
        "page": Page(entry.name),
        "name": entry.name,
        "recipe": recipe,
        "parts": parts,
        "docs": docs,
        "aliases": LOSSES.aliases(entry.name),
        "variant": variant,
        "loss": variant.loss,
        "models": PREFERENCE_MODELS,
        "needs": {need: methods.statistic(need) for need in variant.needs},
        "with_reference": [need for need in variant.needs if methods.compares_distributions(need)],
        "reads_reference": methods.reads_reference(variant),
        "costs": variant.scorer and _costs(variant.scorer),
        "measured": _measured(entry.name),
        "parameters": _parameters(entry, docs),
        "source": methods.source(entry, docs[0]),
        "example": methods.call(entry.name, methods.some_parameters(entry)),
    }


def _scorer(entry: Entry) -> dict[str, Any]:
    doc = read_docstring(entry.load())
    settings = methods.some_parameters(entry)
    return {
        "page": Page(entry.name, "scorers"),
        "name": entry.name,
        "parts": [entry],
        "doc": doc,
        "users": methods.users(entry.name),
        "costs": _costs(get_scorer(entry.name)),
        "parameters": _parameters(entry, [doc]),
        "source": methods.source(entry, doc),
        "settings": "".join(f" {key}={value}" for key, value in settings.items()),
        "example": methods.use_of_scorer(entry, doc, settings),
    }


def _generators() -> dict[str, Any]:
    entries = methods.built_in(GENERATORS)
    takers = [e.name for e in methods.built_in(LOSSES) if "generator" in hyper_parameters(e.load())]
    return {
        "page": Page("generators"),
        "takers": takers,
        "generators": [(e, read_docstring(e.load()), methods.defaults(e)) for e in entries],
    }


def _index() -> dict[str, Any]:
    losses, scorers = methods.built_in_methods(), methods.built_in(SCORERS)
    families = {name: [methods.summary(e) for e in losses if methods.family(e) == name] for name in methods.FAMILIES}
    rows = [(e, methods.idea(e), list(get_scorer(e.name).stages), methods.users(e.name)) for e in scorers]
    absent = dict.fromkeys(LOSSES.absent.values())
    return {"page": Page(""), "families": families, "scorers": rows, "absent": absent}


def _costs(scorer: Any) -> dict[str, Any]:
    return {"scorer": scorer, "stages": {name: methods.stage(each) for name, each in scorer.stages.items()}}


def _measured(name: str) -> dict[str, Any]:
    """Return the measured steps of a loss by kind of fine-tuning, as times `dpo`'s."""
    return {each["peft"]: each for each in json.loads(MEASURED.read_text(encoding="utf-8")) if each["loss"] == name}


def _parameters(entry: Entry, docs: list[Any]) -> list[tuple[str, str, str]]:
    """List name, default and meaning of each hyper-parameter; where several docstrings describe it, the first counts."""
    meanings = {key: text for doc in reversed(docs) for key, text in doc.args.items()}
    return [(name, default, meanings.get(name, "")) for name, default in methods.defaults(entry).items()]
