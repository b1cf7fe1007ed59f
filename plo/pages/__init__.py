"""A page for each method, written from the registries and docstrings: what `plo docs` writes to docs/methods.

Measured costs are read from `measured.json`, which `benchmarks/backbone.py --record` writes.
"""

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from plo.docstring import arxiv, cell, read_docstring
from plo.losses import GENERATORS, LOSSES
from plo.losses.register import PREFERENCE_MODELS
from plo.pages import methods
from plo.pages.markdown import Page, code
from plo.scorers import SCORERS, get_scorer, get_variant
from plo.scorers.space import strength_space

COMMAND = "plo docs --out docs/methods"
MARK = f"<!-- Written by `{COMMAND}`; to change it, change the docstring. -->"
MEASURED = Path(__file__).with_name("measured.json")


def pages() -> dict[str, str]:
    """Return every page by its path in the folder; plug-ins that are loaded have none."""
    templates = Environment(
        loader=PackageLoader("plo.pages"), trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    templates.filters |= {"arxiv": arxiv, "cell": cell, "code": code}
    templates.globals |= {"mark": MARK, "methods": methods, "absent": dict.fromkeys(LOSSES.absent.values())}
    templates.globals |= {"LOSSES": LOSSES, "SCORERS": SCORERS, "GENERATORS": GENERATORS}
    templates.globals |= {"get_variant": get_variant, "get_scorer": get_scorer, "read_docstring": read_docstring}
    templates.globals |= {"PREFERENCE_MODELS": PREFERENCE_MODELS, "strength_space": strength_space}

    def render(template: str, page: Page, **facts: Any) -> str:
        text = templates.get_template(f"{template}.md").render(page=page, **facts)
        return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"

    found = {"README.md": render("index", Page("")), "generators.md": render("generators", Page("generators"))}
    measured = json.loads(MEASURED.read_text(encoding="utf-8"))
    for entry in methods.built_in_methods():
        parts, variant = methods.parts(entry), get_variant(entry.name)
        facts = methods.facts(entry, parts) | {"variant": variant, "loss": variant.loss, "scorer": variant.scorer}
        steps = {each["peft"]: each for each in measured if each["loss"] == entry.name}
        found[f"{entry.name}.md"] = render("loss", Page(entry.name), measured=steps, **facts)
    for entry in methods.built_in(SCORERS):
        facts = methods.facts(entry, [entry]) | {"scorer": get_scorer(entry.name)}
        found[f"scorers/{entry.name}.md"] = render("scorer", Page(entry.name, "scorers"), **facts)
    return found


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
