"""A page a method, written from the registries: what `plo docs` writes to docs/methods."""

import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plo.backbone.token_statistics import STATISTICS
from plo.configured import shown
from plo.docstring import Docstring, arxiv, cell, markdown, read_docstring
from plo.losses import GENERATORS, LOSSES, Loss, get_loss
from plo.losses.register import PREFERENCE_MODELS
from plo.registry import Entry, hyper_parameters
from plo.scorers import RECIPES, SCORERS, Scorer, Variant, get_scorer, get_variant
from plo.scorers.recipe import BUILT_IN

COMMAND = "plo docs --out docs/methods"
MARK = f"<!-- Written by `{COMMAND}`; to change it, change the docstring. -->"
# A step beside dpo's, LoRA and full fine-tuning, from benchmarks/README.md, where machine, model and data stand.
MEASURED = {"tdpo2": (1.06, 1.06), "tbpo_a": (1.01, 0.99), "tbpo_q": (1.04, 1.03)}

NOTATION = """y_w, y_l     the chosen and the rejected response; T_w, T_l their tokens, EOS included
s_t          the prompt and the response's tokens before the t-th
pi, ref      the policy that is trained, and the reference: its initial weights
D_t          log pi(y_t | s_t) - log ref(y_t | s_t); log pi/ref for short
D(y)         the sum of D_t over the response's tokens
h            D(y_w) - D(y_l)
sigma        the logistic function
sg[.]        stop-gradient: the value, without its gradient
a_t          the weight of a token, made before training"""

NOT_DISPUTED = "None recorded."


def pages() -> dict[str, str]:
    """Every page by its path in the folder: of the built-in methods, whatever plug-ins are loaded."""
    losses, scorers = _methods(), _built_in(SCORERS)
    found = {"README.md": _index(losses, scorers), "generators.md": _generators()}
    found |= {f"{entry.name}.md": _loss_page(entry) for entry in losses}
    found |= {f"scorers/{entry.name}.md": _scorer_page(entry) for entry in scorers}
    return found


def write(folder: Path) -> list[Path]:
    """Write all pages, and take away those written for what is there no more. Returns the paths of all pages."""
    written = pages()
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in written and path.read_text(encoding="utf-8").startswith(MARK):
            path.unlink()
    for name, text in written.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in written]


def _built_in(registry: Any) -> list[Entry]:
    return [entry for entry in registry if _module(entry).startswith("plo.")]


def _methods() -> list[Entry]:
    """Built-in losses and recipes, in alphabetical order."""
    return sorted([*_built_in(LOSSES), *(RECIPES[name] for name in BUILT_IN)], key=lambda entry: entry.name)


def _module(entry: Entry) -> str:
    return getattr(entry.load(), "__module__", "")


# The pages.


def _loss_page(entry: Entry) -> str:
    variant, link = get_variant(entry.name), _link(entry.name)
    title, parts, formula = f"# `{entry.name}`", [entry], ""
    if entry.name in RECIPES:
        base, scorer = LOSSES[entry.load().loss], SCORERS[entry.load().scorer]
        parts = [scorer, base]
        made = f"A recipe: {_to('', base.name)} with the token weights of {_to('', scorer.name, 'scorers')}."
        docs = [read_docstring(part.load()) for part in parts]
        formula = _code(docs[1].formula) + "\n\nwith the weights\n\n" + _equation(docs[0], link)
    else:
        made = ""
        docs = [read_docstring(entry.load())]
        formula = _equation(docs[0], link)
    aliases = ", ".join(f"`{name}`" for name in LOSSES.aliases(entry.name))
    sections = {
        "": [markdown(docs[0].sections["Idea"], link), made, f"Also called {aliases}." if aliases else ""],
        "Equation": [formula, "The letters: [notation](README.md#notation)."],
        "Assumes": [_assumes(doc, link) for doc in docs] + [_recovery(variant.loss)],
        "Needs": [_needs(variant)],
        "Cost": [_cost(variant)],
        "Hyper-parameters": [_table_of(entry, docs, link)],
        "Value and metrics": [markdown(docs[-1].sections["Returns"], link)],
        "Disputes": [markdown(_sentence(docs[0].sections.get("Dispute", "")), link) or NOT_DISPUTED],
        "Use": [_use(entry)],
        "Source": [_source(entry, docs[0], link), "Code: " + ", ".join(_file(part, "../../") for part in parts) + "."],
    }
    return _page(title, sections)


def _scorer_page(entry: Entry) -> str:
    scorer, link = get_scorer(entry.name), _link(entry.name, "scorers")
    doc = read_docstring(entry.load())
    users = ", ".join(_to("scorers", name) for name in _users(entry.name))
    role = f"A token scorer, used by {users}." if users else "A token scorer."
    role += " Its weights are made once, before training, and carry no gradient."
    sections = {
        "": [markdown(doc.sections["Idea"], link), role],
        "Weights": [_equation(doc, link), "The letters: [notation](../README.md#notation)."],
        "Assumes": [_assumes(doc, link)],
        "Cost": [_scorer_cost(scorer, "scorers")],
        "Hyper-parameters": [_table_of(entry, [doc], link)],
        "What they sum to": [markdown(doc.sections["Yields"], link)],
        "Disputes": [markdown(_sentence(doc.sections.get("Dispute", "")), link) or NOT_DISPUTED],
        "Use": [_use_of_scorer(entry, doc)],
        "Source": [_source(entry, doc, link), f"Code: {_file(entry, '../../../')}."],
    }
    return _page(f"# Token scorer `{entry.name}`", sections)


def _generators() -> str:
    takers = _list(_to("", e.name) for e in _built_in(LOSSES) if "generator" in hyper_parameters(e.load()))
    sections = {
        "": [
            f"Strictly convex functions h(R) of a ratio R > 0, each of which makes a loss of R. {takers} take one.",
            _code("L(R) = h'(R) R - h(R) - h'(1/R)"),
            "One of your own is registered by h alone (`register_generator`); h' and L follow. "
            "Only the slope of L is trained on; constants are such that L(1) = -h(1).",
        ]
    }
    for entry in _built_in(GENERATORS):
        doc = read_docstring(entry.load())
        defaults = ", ".join(f"`{key}={shown(p.default)}`" for key, p in hyper_parameters(entry.load()).items())
        sections[entry.name] = [
            _equation(doc, _link("generators")),
            f"By itself: {defaults}; a loss that has {'it' if defaults.count('=') == 1 else 'them'} hands on its own."
            if defaults
            else "No hyper-parameters.",
            _code(f"plo verify --generator {entry.name}", "sh"),
            arxiv(f"arXiv {entry.facts.paper}") + f". Code: {_file(entry, '../../')}.",
        ]
    return _page("# Bregman generators", sections)


def _index(losses: list[Entry], scorers: list[Entry]) -> str:
    sections = {
        "": [
            "A page for each built-in loss, recipe and [token scorer](#token-scorers), and one for the "
            "[Bregman generators](generators.md). Methods are compared by `plo compare`, listed by `plo losses`, and "
            "tried without a model by `plo verify NAME`.",
            "*Reference* says whether the reference model is needed. *Needs* are the statistics beside the policy's "
            "own log-probs, at default hyper-parameters. *First* is what is trained before the policy.",
        ],
        "Notation": [_code(NOTATION)],
    }
    for family in FAMILIES:
        rows = [_row(entry) for entry in losses if _family(entry) == family]
        if rows:
            sections[family] = [_table(("method", "idea", "reference", "level", "needs", "first", "paper"), rows)]
    rows = []
    for entry in scorers:
        trained = ", ".join(f"`{name}`" for name in get_scorer(entry.name).stages) or "-"
        users = ", ".join(_to("", name) for name in _users(entry.name)) or "-"
        name = _to("", entry.name, "scorers")
        rows.append((name, _idea(entry), trained, users, arxiv(entry.facts.paper)))
    sections["Token scorers"] = [
        "What makes the weights of a loss that needs `weights`: `twdpo(scorer=...)`. Listed by `plo scorers`, looked "
        "at with `plo scores NAME`.",
        _table(("scorer", "idea", "first", "used by", "paper"), rows),
    ]
    absent = dict.fromkeys(LOSSES.absent.values())
    sections["Not here"] = ["\n".join(f"- {markdown(reason)}" for reason in absent)]
    return _page("# Methods", sections)


# Where a loss stands in the index: by what it needs, so that a new one finds its place.

FAMILIES = {
    "Baseline": lambda variant: variant.loss.level == "token",
    "Recipes: a loss with a token scorer": lambda variant: variant.registered_name in RECIPES,
    "On weighted or chosen tokens": lambda variant: "weights" in variant.needs,
    "Over the batch": lambda variant: variant.loss.level == "batch",
    "On log-ratios of whole responses": lambda variant: variant.needs == ("ref_logps",),
    "Without a reference": lambda variant: "ref_logps" not in variant.needs,
    "With more statistics of every token": lambda variant: True,
}


def _family(entry: Entry) -> str:
    variant = get_variant(entry.name)
    return next(name for name, holds in FAMILIES.items() if holds(variant))


def _row(entry: Entry) -> tuple[str, ...]:
    variant = get_variant(entry.name)
    aliases = "".join(f" = `{name}`" for name in LOSSES.aliases(entry.name))
    needs = ", ".join(f"`{need}`" for need in variant.needs) or "-"
    first = ", ".join(f"`{name}`" for name in variant.scorer.stages) if variant.scorer else ""
    paper = arxiv(entry.facts.paper) if re.match(r"\d", entry.facts.paper) else "-"
    idea = _idea(SCORERS[entry.load().scorer] if entry.name in RECIPES else entry)
    return (
        _to("", entry.name) + aliases,
        idea,
        _yes(_reads_reference(variant)),
        variant.loss.level,
        needs,
        first or "-",
        paper,
    )


def _idea(entry: Entry) -> str:
    return markdown(read_docstring(entry.load()).sections["Idea"].split(". ")[0].rstrip("."), _link(""))


# Sections.


def _equation(doc: Docstring, link: Callable[[str], str]) -> str:
    notes = [_code(_dedented(note)) if note.startswith("    ") else markdown(_joined(note), link) for note in doc.notes]
    return "\n\n".join([_code(doc.formula), *notes])


def _assumes(doc: Docstring, link: Callable[[str], str]) -> str:
    return markdown(_sentence(doc.sections["Assumes"]), link)


def _recovery(loss: Loss) -> str:
    if loss.assumes in PREFERENCE_MODELS:
        weights = " (with weights of 1)" if "weights" in loss.needs else ""
        return (
            f"`plo verify`: it must recover the optimum of such preferences{weights}, to 1e-8 nats (`{loss.assumes}`)."
        )
    if loss.assumes:
        return f"`plo verify`: there is no optimal policy to recover: {markdown(loss.assumes)}."
    return "`plo verify`: it declares no model of preferences whose optimal policy it should recover."


def _needs(variant: Variant) -> str:
    lines = ["- `logps`: the policy's log-probs of the response tokens, as every loss."]
    for need in variant.needs:
        if need == "ref_logps":
            text = "the reference's log-probs of the response tokens."
        elif need == "hidden":
            text = "the policy's hidden state, after the final norm, at the position that predicts a token; detached."
        elif need == "weights":
            text = f"constants, one a token, from the token scorer {_to('', variant.scorer.entry.name, 'scorers')}"
            text += "." if variant.registered_name in RECIPES else " unless another one is named (`scorer=...`)."
        else:
            text = markdown(read_docstring(STATISTICS[need].load()).formula)
        lines.append(f"- `{need}`: {text}")
    if callable(variant.loss.entry.facts.needs):
        lines.append("\nThese are the needs at the defaults; other hyper-parameters may have others.")
    if not _reads_reference(variant):
        lines.append("\nNo reference model.")
    return "\n".join(lines)


def _cost(variant: Variant) -> str:
    loss, name, lines = variant.loss, variant.registered_name, []
    for need in loss.needs:
        if need == "ref_logps":
            lines.append("- The reference: one pass over the pairs before training, kept for every loss and seed.")
        elif need == "hidden":
            lines.append("- `hidden`: no pass of its own, the forward pass has it.")
        elif need in STATISTICS and STATISTICS[need].facts.reference:
            lines.append(
                f"- `{need}`: the reference's whole distribution in every step, so its hidden states (on disk, beyond "
                "`model.reference_disk_gb` computed anew in each step) and a second product with the LM head."
            )
        elif need in STATISTICS:
            lines.append(f"- `{need}`: another sum over the vocabulary, of the logits that `logps` takes anyway.")
    if variant.scorer is not None:
        lines += [f"- {line}" for line in _scorer_cost(variant.scorer, "").split("\n\n")]
    if loss.has_parameters:
        lines.append("- Parameters of its own, trained with the policy at their own learning rate.")
    if loss.level == "batch":
        lines.append("- The whole optimiser step in one forward pass: refused with a smaller `train.micro_batch_size`.")
    if name in MEASURED:
        lora, full = MEASURED[name]
        lines.append(
            f"- Measured: a step takes {lora:.2f} (LoRA) and {full:.2f} (full fine-tuning) times as long as `dpo`'s "
            f"(`python benchmarks/backbone.py --rows 16 --epochs 2 --against plo:{name}`, and with "
            "`--peft full`; machine, model and data: [benchmarks](../../benchmarks/README.md))."
        )
    elif name == "dpo":
        lines.append(
            "- Its step is what others are measured by, and what TRL's is: [benchmarks](../../benchmarks/README.md)."
        )
    elif set(loss.needs) <= {"ref_logps", "weights"}:
        lines.append("- A step computes no statistic beyond those of `dpo`. Not measured.")
    else:
        lines.append("- Its step beside `dpo`'s: not measured.")
    return "\n".join(lines)


def _scorer_cost(scorer: Scorer, folder: str) -> str:
    parts = []
    for name, stage in scorer.stages.items():
        loss = get_loss(stage.loss).entry.name
        of = "a model of your choice" if stage.model else "the policy's own initial weights"
        order = ", with chosen and rejected exchanged" if stage.reversed else ""
        parts.append(
            f"Trained first: `{name}`, by {_to(folder, loss)} from {of}, on {stage.share:.0%} of the pairs{order}."
        )
    if scorer.stages:
        parts.append(
            "Then the log-probs of all training pairs under these models. Runs that name the same stage share it; "
            "`plo compare` trains it where it is not there yet."
        )
    if "model" in scorer.reads:
        parts.append("Forward passes of the initial policy, with attention weights, over prompts made of each pair.")
    if not parts:
        parts.append("Its weights cost next to nothing: no model is trained or read for them.")
    if scorer.inner is not None:
        parts.append("And what the scorer that it changes costs.")
    if scorer.seeded:
        parts.append("Its weights are drawn anew for every seed.")
    return "\n\n".join(parts)


def _table_of(entry: Entry, docs: list[Docstring], link: Callable[[str], str]) -> str:
    said = {key: text for doc in reversed(docs) for key, text in doc.args.items()}
    rows = [
        (f"`{name}`", f"`{shown(parameter.default)}`", markdown(said.get(name, ""), link))
        for name, parameter in hyper_parameters(entry.load()).items()
    ]
    return _table(("name", "default", "meaning"), rows) if rows else "None."


def _source(entry: Entry, doc: Docstring, link: Callable[[str], str]) -> str:
    paper = entry.facts.paper
    text = doc.sections.get("Source") or f"No paper ({paper})."
    number = re.match(r"[\d.]+", paper)
    missing = f"arXiv {number[0]}. " if number and number[0] not in text else ""
    return markdown(missing + _sentence(text), link)


def _use(entry: Entry) -> str:
    beside = "" if entry.name == "dpo" else " --loss dpo"
    spec = _call(entry.name, _some(entry))
    return _code(f'plo verify {entry.name}\nplo compare --loss "{spec}"{beside} name=try-{entry.name}', "sh")


def _use_of_scorer(entry: Entry, doc: Docstring) -> str:
    params = _some(entry)
    recipes = [name for name in sorted(BUILT_IN) if RECIPES[name].load().scorer == entry.name]
    loss = next(
        (name for name in _users(entry.name) if name in LOSSES and LOSSES[name].facts.scorer == entry.name), None
    )
    said = re.findall(r"`(\w+)`", doc.sections["Idea"])
    taking = [name for name in said if name in LOSSES and "weights" in get_loss(name).needs]
    loss = loss or next(iter(taking), "twdpo")
    settings = "".join(f" {key}={value}" for key, value in params.items())
    spec = _call(recipes[0], params) if recipes else f"{loss}(scorer={_call(entry.name, params)})"
    command = f'plo compare --loss "{spec}" --loss dpo name=try-{entry.name}'
    return _code(f"plo scores {entry.name}{settings} --pairs 2\n{command}", "sh")


# Pieces.


def _users(scorer: str) -> list[str]:
    """Built-in recipes made of the scorer, and losses that take it where none is named."""
    names = []
    for entry in _methods():
        made = get_variant(entry.name).scorer
        if made is not None and made.entry.name == scorer:
            names.append(entry.name)
    return names


def _reads_reference(variant: Variant) -> bool:
    return any(n == "ref_logps" or (n in STATISTICS and STATISTICS[n].facts.reference) for n in variant.needs)


def _some(entry: Entry, most: int = 2) -> dict[str, str]:
    """A few hyper-parameters that have a default, to show how they are set."""
    items = hyper_parameters(entry.load()).items()
    return dict([(key, shown(p.default)) for key, p in items if p.default is not None][:most])


def _call(name: str, params: Mapping[str, str]) -> str:
    return f"{name}({', '.join(f'{key}={value}' for key, value in params.items())})" if params else name


def _to(here: str, name: str, folder: str = "") -> str:
    """A link from a page in the folder `here` to one in `folder`."""
    steps = "" if here == folder else f"{folder}/" if folder else "../"
    return f"[`{name}`]({steps}{name}.md)"


def _link(own: str, here: str = "") -> Callable[[str], str]:
    """Names in `code` that have a page become links to it, but for the page's own."""
    up = "../" if here else ""

    def link(code: str) -> str:
        for folder, registry in sorted(
            [("", LOSSES), ("", RECIPES), ("scorers", SCORERS)], key=lambda pair: pair[0] != here
        ):
            if code in registry and code != own and registry[code].name == code:
                return _to(here, code, folder)
        if code in GENERATORS and code != own:
            return f"[`{code}`]({up}generators.md#{code})"
        return f"`{code}`"

    return link


def _file(entry: Entry, up: str) -> str:
    path = re.sub(r"^plo/(losses|evals|leaderboards)/", r"\1/", _module(entry).replace(".", "/") + ".py")
    return f"[{markdown(path)}]({up}{path})"


def _page(title: str, sections: Mapping[str, list[str]]) -> str:
    parts = [MARK, title]
    for heading, body in sections.items():
        parts += [f"## {heading}"] * bool(heading) + [part for part in body if part]
    return "\n\n".join(parts) + "\n"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def _code(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


def _dedented(text: str) -> str:
    return inspect.cleandoc("\n" + text)


def _joined(text: str) -> str:
    return " ".join(text.split())


def _sentence(text: str) -> str:
    """With a capital letter and a full stop, unless it begins with a name or a formula."""
    text = text[:1].upper() + text[1:] if re.match(r"[a-z]{2,}[ ,:;]|a ", text) else text
    return text if not text or text.endswith((".", "?")) else text + "."


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _list(names: Any) -> str:
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
