"""The model card of a trained cell: what it is, how it compares, and how to train it again; from recorded runs alone."""

import json
import math
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from plo.leaderboards.board import Leaderboard, Row
from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.columns import difference_column, label, mean_column
from plo.leaderboards.formatting import escape, format_count, format_estimate, format_number, markdown_table
from plo.leaderboards.headline import design_lines
from plo.leaderboards.training_pairs import said_of_pairs
from plo.tracking import MADE_WITH, RecordedCell
from plo.values import without_credentials, without_paths

MANIFEST = "plo-manifest.json"
HUB = re.compile(r"[\w.-]+/[\w.-]+")  # a name on the hub
LONGEST = 600  # characters of a text of a table


@dataclass(frozen=True)
class LossText:
    """Description of a loss for a model card: a sentence, the lines of its equation, and the address of its paper or ""."""

    summary: str
    formula: str = ""
    link: str = ""


def model_card(
    board: Leaderboard,
    cell: RecordedCell,
    *,
    adapter: bool,
    base: str,
    repo: str,
    losses: Mapping[str, LossText],
    license: str | None = None,
) -> str:
    """Return the README.md of a trained cell's repository: YAML front matter, and Markdown in which every text is inert.

    Args:
        board: leaderboard of the cell's comparison, which has the verdict.
        adapter: whether the files are a LoRA adapter; otherwise they are a whole model.
        base: name of the model that training started from.
        repo: name on the hub, or the folder that the files are written to.
        losses: what to say of each loss, by name; the cell's variant may name several.
        license: identifier of the licence of the weights; None states none.

    Raises:
        LeaderboardError: the cell is in no row of the board.
    """
    row = next((one for one in board.rows if cell.run_id in one.runs.values()), None)
    if row is None:
        raise LeaderboardError(f"{cell.name} is in no row of the leaderboard: run plo compare to its end first.")
    config = board.recorded[0].config()
    named = {name: text for name, text in losses.items() if name in re.findall(r"\w+", row.variant)}
    title, source, base = board.title(row), _public(str(config["data"]["source"])), _public(base)
    what = "A LoRA adapter of" if adapter else "A fine-tuning of"
    on = f"the preference pairs of {escape(source, LONGEST)}"
    if made := next(iter(said_of_pairs([cell])), ""):
        on = f"preference pairs made from {escape(source, LONGEST)} ({escape(made, LONGEST)})"
    parts = [
        f"# {escape(title)}",
        f"{what} {escape(base)}, trained on {on} "
        f"with the loss {escape(row.loss)} and seed {escape(cell.tags['plo.seed'])}, in the comparison "
        f"{escape(cell.comparison)} of plo.",
        "## Result",
        verdict(board, row),
        "\n".join(f"- {escape(line, 1000)}" for line in design_lines(board)),
        f"The verdict is about the variant, with {format_count([len(row.runs)], 'seed')}. These weights are those of one seed, whose values are in the first "
        "column. An interval is for new prompts and, with several seeds, new seeds.",
        _results(board, row, cell),
        "## Loss",
        *_losses(named),
        "## Use",
        _fence("python", _snippet(repo, adapter)),
        "## Settings",
        markdown_table(
            ["setting", "value"], ([escape(n), escape(v, LONGEST)] for n, v in _settings(config, cell, row))
        ),
        "## Train it again",
        *_again(board, cell, config),
        "## Licence",
        _licence(license, base, source),
    ]
    return f"---\n{_front_matter(board, row, cell, adapter, base, source, license)}\n---\n\n" + "\n\n".join(
        part for part in parts if part
    ) + "\n"  # fmt: skip


def verdict(board: Leaderboard, row: Row) -> str:
    """Return a sentence, as Markdown, with the verdict on a row and its difference from the baseline."""
    name, base = board.primary_metric, board.baseline
    if name is None or base is None or board.is_hidden(name):
        return "Nothing was tested: the comparison has no primary metric, no baseline, or no judge better than chance."
    if row is base:
        return f"This variant is the baseline that the others were compared with in {escape(label(board, name))}."
    gap, digits = row.differences.get(name), board.descriptions[name].digits
    if gap is None:
        return f"It was not compared with {escape(board.title(base))} in {escape(label(board, name))}."
    difference = f"{format_estimate(gap.mean, gap, digits, '+')} in {escape(label(board, name))}"
    if row.verdict is None:
        return f"Difference from {escape(board.title(base))}, not tested: {difference}."
    return f"**{row.verdict.capitalize()}**, compared with {escape(board.title(base))}: {difference}."


def on_hub(name: str) -> bool:
    """Return whether a name is that of a repository on the hub, and not of a folder of this machine."""
    return bool(HUB.fullmatch(name)) and not Path(name).expanduser().exists()


def _front_matter(
    board: Leaderboard, row: Row, cell: RecordedCell, adapter: bool, base: str, source: str, license: str | None
) -> str:
    name, results = board.primary_metric, None
    value = row.values.get(name or "", {}).get(cell.run_id, math.nan)
    if name is not None and math.isfinite(value) and not board.is_hidden(name):
        results = [
            EvalResult(
                task_type="text-generation",
                dataset_type=_name(source),
                dataset_name=_name(source),
                metric_type=name,
                metric_name=label(board, name),
                metric_value=value,
            )
        ]
    data = ModelCardData(
        base_model=base if on_hub(base) else None,
        datasets=[source] if on_hub(source) else None,
        library_name="peft" if adapter else "transformers",
        license=license,
        pipeline_tag="text-generation",
        tags=["plo", "preference-optimization", *(["lora"] if adapter else []), _name(row.loss)],
        model_name=_name(board.title(row)),
        eval_results=results,
    )
    return data.to_yaml()


def _name(text: str) -> str:
    """Return a text as one short line of printable characters, for the front matter."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())[:96] or "unnamed"


def _results(board: Leaderboard, row: Row, cell: RecordedCell) -> str:
    lines = []
    for name in board.metrics:
        if board.is_hidden(name) or name not in row.metrics:
            continue
        metric, own = board.descriptions[name], row.values.get(name, {}).get(cell.run_id, math.nan)
        title, mean = mean_column(board, name)
        lines.append(
            [escape(title), format_number(own, metric.digits), mean(row), difference_column(board, name)[1](row)]
        )
    titles = ["metric", f"seed {escape(cell.tags['plo.seed'])}", f"mean of {format_count([len(row.runs)], 'seed')}"]
    base = board.title(board.baseline) if board.baseline is not None else "the baseline"
    return markdown_table([*titles, f"difference from {escape(base)}"], lines) if lines else ""


def _public(text: str) -> str:
    """Return a text without passwords, and a path of this machine as its last name."""
    return Path(text).name if text.startswith(("/", "~", ".", "\\")) else without_paths(without_credentials(text))


def _losses(named: Mapping[str, LossText]) -> Iterator[str]:
    if not named:
        yield "The loss is registered in a plug-in, which this card was made without."
    for name, text in named.items():
        link = f" ([paper](<{text.link}>))" if re.fullmatch(r"https://[\w./-]+", text.link) else ""
        yield f"**{escape(name)}**: {escape(text.summary, LONGEST)}{link}"
        if text.formula:
            yield _fence("text", text.formula)


def _settings(config: Mapping[str, Any], cell: RecordedCell, row: Row) -> Iterator[tuple[str, str]]:
    """Yield settings of the model, the data, the loss and the training, as they were recorded."""
    for section in ("model", "data"):
        for name, value in config[section].items():
            if value not in (None, {}, [], ()):
                yield f"{section}.{name}", _public(value if isinstance(value, str) else json.dumps(value))
    yield from (
        (name, _public(value)) for name, value in sorted(cell.params.items()) if name.startswith(("loss.", "train."))
    )
    yield "stages", ", ".join(config.get("stages", ["preference"]))
    yield "tuning", row.status
    for name in ("plo.data", "plo.model", "plo.code"):
        if name in cell.tags:
            yield f"digest of {name.removeprefix('plo.')}", cell.tags[name][:16]


def _again(board: Leaderboard, cell: RecordedCell, config: Mapping[str, Any]) -> Iterator[str]:
    plugins = "".join(f" --plugin {shlex.quote(Path(str(one)).name)}" for one in config.get("plugins") or ())
    yield f"`{MANIFEST}` in this repository has every setting, and digests of every number:"
    yield _fence("sh", f"plo reproduce {MANIFEST}{plugins}")
    made = board.recorded[0].made_with(cell.tags.get(MADE_WITH)) or {}
    versions = {name: made.get("packages", {}).get(name) for name in ("plo", "torch", "transformers", "peft")}
    known = ", ".join(f"{name} {escape(version)}" for name, version in versions.items() if version)
    hardware = made.get("hardware", {})
    on = hardware.get("gpu") or hardware.get("cpu")
    if known:
        yield f"It was trained with {known}{f' on {escape(on)}' if on else ''}."


def _licence(license: str | None, base: str, source: str) -> str:
    own = f"Licence of these weights: {escape(license)}." if license else "No licence was stated for these weights."
    return f"{own} The licences of the base model ({escape(base)}) and of the data ({escape(source)}) apply."


def _snippet(repo: str, adapter: bool) -> str:
    kind, module = ("AutoPeftModelForCausalLM", "peft") if adapter else ("AutoModelForCausalLM", "transformers")
    tokenizer = "from transformers import AutoTokenizer" if adapter else ""
    imports = [f"from {module} import {kind}" + (", AutoTokenizer" if not adapter else ""), *filter(None, [tokenizer])]
    name = json.dumps(repo)
    return "\n".join([*imports, "", f"model = {kind}.from_pretrained({name})",
                      f"tokenizer = AutoTokenizer.from_pretrained({name})"])  # fmt: skip


def _fence(language: str, text: str) -> str:
    """Return a block of code that nothing in the text can end."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks, shown = (
        "`" * max(3, longest + 1),
        "\n".join("".join(c if c.isprintable() else "�" for c in line) for line in text.split("\n")),
    )
    return f"{ticks}{language}\n{shown}\n{ticks}"
