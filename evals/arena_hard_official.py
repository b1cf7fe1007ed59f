"""Arena-Hard v2's definitions: judge prompts, verdicts as scores, style of an answer, and its leaderboard."""

import ast
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from scipy.special import expit

from plo.evals.files import find_file, read_fields
from plo.evals.judges import Template
from plo.evals.registry import EvaluationError
from plo.statistics.logistic import logistic

WEIGHT = 3  # games that a verdict "significantly better" counts as
VERDICTS = {"A>>B": 0.0, "A>B": 0.25, "A=B": 0.5, "B>A": 0.75, "B>>A": 1.0}  # P(b better)
OTHERS = {"A<<B": 1.0, "A<B": 0.75, "B=A": 0.5, "B<A": 0.25, "B<<A": 0.0}  # that judges write as well
SLOTS = {"{QUESTION}": "{prompt}", "{ANSWER_A}": "{a}", "{ANSWER_B}": "{b}"}
STYLE = ("length", "headers", "lists", "bold")
_FENCED = re.compile("```([^`]*)```")
_STYLES = {
    "header_count": {f"h{n}": re.compile(rf"^#{{{n}}}\s", re.MULTILINE) for n in range(1, 7)},
    "list_count": {
        "ordered": re.compile(r"^\s*\d+\.\s", re.MULTILINE),
        "unordered": re.compile(r"^\s*[-*+]\s", re.MULTILINE),
    },
    "bold_count": {"**": re.compile(r"\*\*[^*\n]+\*\*"), "__": re.compile(r"__[^_\n]+__")},
}


def official_template(folder: Path | None, category: str) -> Template:
    """Return the judge prompt of a category from a clone of github.com/lmarena/arena-hard-auto.

    Raises:
        EvaluationError: the folder is no such clone, or has other prompts than plo can read.
    """
    files = [
        find_file(folder, name) if folder else None for name in ("utils/judge_utils.py", "config/arena-hard-v2.0.yaml")
    ]
    if folder is None or None in files:
        raise EvaluationError(
            f"arena_hard(official=True) reads the judge prompts from a clone, and {folder or 'no folder'} has no "
            f"utils/judge_utils.py and config/arena-hard-v2.0.yaml: git clone https://github.com/lmarena/arena-hard-auto, and "
            f"set data=FOLDER."
        )
    code, settings = (path.read_text(encoding="utf-8") for path in files if path is not None)
    try:
        system = _constants(code)["JUDGE_SETTINGS"][category]["system_prompt"]
        shown = yaml.safe_load(settings)["prompt_template"]
        for theirs, ours in SLOTS.items():
            shown.index(theirs)  # a ValueError where it is missing
            shown = shown.replace(theirs, ours)
    except (SyntaxError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise EvaluationError(
            f"The judge prompt of {category} in {folder} cannot be read ({type(error).__name__}: {error}): check out the clone's "
            f"commit 196f6b8, which plo was tried with."
        ) from error
    messages = (("system", system), ("user", shown))
    digest = hashlib.sha256(repr(messages).encode()).hexdigest()[:16]
    stated = VERDICTS | OTHERS
    name = f"arena_hard_official_{category}"
    return Template(
        name, "2.0", tuple(stated), "brackets", messages, f"{name} 2.0 {digest}", tuple(stated.values()), 16_000
    )


def _constants(code: str) -> dict[str, Any]:
    """Return the constants that a module assigns, without running it; one may name another."""
    known: dict[str, Any] = {}

    class Named(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return ast.Constant(known[node.id]) if node.id in known else node

    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = ast.literal_eval(Named().visit(node.value))
    return known


def scores(p: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the outcome for b (1, 1/2, 0) of each verdict P(b better) and its weight: 3 where one is significantly better.

    A probability between two verdicts counts as the nearer one; NaN has weight 0.
    """
    verdict = np.round(4 * np.asarray(p, dtype=float)) / 4
    weight = np.where(np.abs(verdict - 0.5) == 0.5, float(WEIGHT), 1.0)
    return (1 + np.sign(verdict - 0.5)) / 2, np.where(np.isnan(verdict), 0.0, weight)


def markdown_of(answer: str) -> dict[str, dict[str, int]]:
    """Count headers, list items and bold texts of an answer outside fenced code, by kind, under Arena-Hard's names."""
    for block in _FENCED.findall(answer):
        answer = answer.replace(block, "")
    return {
        name: {kind: len(pattern.findall(answer)) for kind, pattern in kinds.items()} for name, kinds in _STYLES.items()
    }


def style_of(metadata: Mapping[str, Any]) -> list[float]:
    """Return length, headers, list items and bold texts of an answer's metadata: {"token_len": 90, "header_count": {...}}."""
    length, *counts = metadata.values()
    return [float(length), *(float(sum(count.values())) for count in counts)]


def style_differences(ours: Any, theirs: Any) -> np.ndarray:
    """Return the style features of games [games, 4] from the styles of the model's and the baseline's answers.

    length: (l - l') / (l + l');    others: (d - d') / (d + d' + 1),  d = count / (l + 1)
    """
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    total = a[:, :1] + b[:, :1]
    length = np.divide(a[:, :1] - b[:, :1], total, out=np.zeros_like(total), where=total > 0)
    dense_a, dense_b = (style[:, 1:] / (style[:, :1] + 1) for style in (a, b))
    return np.hstack([length, (dense_a - dense_b) / (dense_a + dense_b + 1)])


def equal_style_rate(outcomes: Any, weights: Any, differences: Any) -> float:
    """Return the rate of wins over the baseline as if both answers had one style, by the regression of style control.

        P(win) = sigmoid(d + w . x),    rate = sigmoid(d)

    x are the features of `style_differences`, with weights as in `scores`. Arena-Hard's own table centres x over the games of
    all its models; with one model that would put its own style back in, so here x is not centred.
    """
    x, weights = np.asarray(differences, dtype=float), np.asarray(weights, dtype=float)
    x = x[:, x.std(axis=0) > 0]
    scaled = x / x.std(axis=0, ddof=1) if x.shape[1] else x
    return float(expit(logistic(np.hstack([np.ones((len(x), 1)), scaled]), outcomes, weights)[0]))


def official_rates(
    folder: Path, judge: str, category: str = "hard_prompt", *, style: Sequence[str] | None = STYLE
) -> dict[str, float]:
    """Return the win rates of Arena-Hard v2's leaderboard from recorded verdicts, without its bootstrap.

    Without style control a rate is the mean score. With it, one regression over the games of all models gives a rating d to
    each model and a slope to each feature of style, centred and divided by its standard deviation over the games; the rate
    is sigmoid(d), d that over the baseline. The official script reports the median of 100 bootstrap samples.

    Args:
        folder: folder of the benchmark with `model_judgment/<judge>/*.jsonl` and `model_answer/*.jsonl`.
        style: features to control for, of `STYLE`; None: no control.

    Returns:
        Shares by model.

    Raises:
        EvaluationError: there are no verdicts, or an answer has no metadata.
    """
    files = sorted((folder / "model_judgment" / judge).glob("*.jsonl"))
    games = [
        game for file in files for row in read_fields(file, "uid", "model", "games") for game in _games(row, category)
    ]
    if not games:
        raise EvaluationError(
            f"{folder} has no readable verdicts of {judge} on {category}: copy model_judgment/{judge}."
        )
    table = pd.DataFrame(games, columns=["model", "baseline", "uid", "p"])
    outcome, weight = scores(table["p"])
    if style is None:
        sums = pd.DataFrame({"won": outcome * weight, "all": weight}).groupby(table["model"]).sum()
        return {str(model): float(rate) for model, rate in (sums["won"] / sums["all"]).items()}
    styles = _styles(folder)
    missing = {
        (m, u) for c in ("model", "baseline") for m, u in zip(table[c], table["uid"], strict=True)
    } - styles.keys()
    if missing:
        model, uid = min(missing)
        raise EvaluationError(
            f"{folder}: model_answer has no metadata of the answer of {model} to {uid}: run the official add_markdown_info.py."
        )
    ours, theirs = (
        [styles[key] for key in zip(table[who], table["uid"], strict=True)] for who in ("model", "baseline")
    )
    x = style_differences(ours, theirs)[:, [STYLE.index(name) for name in style]]
    mean, deviation = np.average(x, axis=0, weights=weight), _deviation(x, weight)
    models = sorted(set(table["model"]))
    players = (table["model"].to_numpy()[:, None] == np.array(models)).astype(float)
    found = logistic(np.hstack([players, (x - mean) / deviation]), outcome, weight)
    return {model: float(expit(rating)) for model, rating in zip(models, found, strict=False)}


def _deviation(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return the standard deviations (ddof 1) of features where a game of weight 3 is there three times; 1 for a constant."""
    centred = x - np.average(x, axis=0, weights=weight)
    deviation = np.sqrt(weight @ centred**2 / (weight.sum() - 1))
    return np.where(deviation > 0, deviation, 1.0)


def _games(row: Mapping[str, Any], category: str) -> list[tuple[str, str, str, float]]:
    """Return both games of a recorded verdict as P(the model is better); none if one of them is unreadable."""
    if row.get("category") != category:
        return []
    stated = [(VERDICTS | OTHERS).get(str((game or {}).get("score"))) for game in row["games"]]
    if len(stated) != 2 or None in stated:
        return []
    shown_second, shown_first = (float(p) for p in stated if p is not None)
    who = row["model"].split("/")[-1], row["baseline"], row["uid"]
    return [(*who, shown_second), (*who, 1 - shown_first)]


def _styles(folder: Path) -> dict[tuple[str, str], list[float]]:
    rows = [
        row for file in sorted((folder / "model_answer").glob("*.jsonl")) for row in read_fields(file, "uid", "model")
    ]
    return {(row["model"].split("/")[-1], row["uid"]): style_of(row["metadata"]) for row in rows if "metadata" in row}
