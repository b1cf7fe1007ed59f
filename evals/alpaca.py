"""AlpacaEval: a model's answers to 805 instructions, judged against a baseline's answers."""

import gzip
import json
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import Field

from plo.evals.alpaca_official import (
    INSTRUCTIONS,
    length_controlled_items,
    official_file,
    official_order,
    official_template,
    win_rates,
)
from plo.evals.answers import ANSWER_DIRECTIONS, ANSWER_MEANINGS, THINK_END, draw_answers
from plo.evals.findings import Findings, means
from plo.evals.judges import JudgeSession
from plo.evals.registry import EvaluationError, register_evaluation
from plo.subjects import Subject

BASELINE, OFFICIAL_JUDGE = "gpt4_1106_preview", "openai:gpt-4-1106-preview"
RETIRED = (
    "AlpacaEval 2's own judge, gpt-4-1106-preview, is no longer served by its provider: AlpacaEval 2 can be recomputed from "
    "stored verdicts (plo.evals.alpaca_official.win_rates), but no longer run."
)
ENOUGH = 100  # readable verdicts; with fewer, the regression reflects little but its 1,610 fixed rows
DIRECTIONS = {
    "win_rate": True,
    "win_rate_se": None,
    "discrete_win_rate": True,
    "length_controlled_win_rate": True,
    "length": None,
    "unreadable": False,
    "consistency": None,
    **ANSWER_DIRECTIONS,
}
MEANINGS = {
    "win_rate": "mean probability that the judge prefers the answer to the baseline's",
    "win_rate_se": "standard error of the win rate over instructions",
    "discrete_win_rate": "share of instructions on which the judge prefers the answer to the baseline's, draws half",
    "length_controlled_win_rate": "win rate at the baseline's lengths, by the alpaca-eval package",
    "length": "characters of an answer, mean",
    "unreadable": "share of instructions without a readable verdict",
    "consistency": "share of instructions with the same verdict in both orders of the answers",
    **ANSWER_MEANINGS,
}


@register_evaluation(
    "alpaca_eval",
    level="model",
    main_score="win_rate",
    higher_is_better=DIRECTIONS,
    meaning=MEANINGS,
    texts=INSTRUCTIONS,
    asked_once="official",
    license="Apache-2.0 AND CC-BY-NC-4.0",
    citation="Dubois et al. 2024, arXiv:2404.04475",
)
def alpaca_eval(
    subject: Subject,
    judging: JudgeSession,
    *,
    instructions: Annotated[int, Field(ge=1, le=INSTRUCTIONS)] | None = None,
    baseline: Path | None = None,
    data: Path | None = None,
    official: bool = False,
    max_new_tokens: Annotated[int, Field(ge=1)] = 2048,
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.7,
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Judge one answer to each AlpacaEval instruction against the baseline's answer to the same instruction.

    `win_rate` is the mean of P(the judge prefers the model's answer), as in AlpacaEval 2; `discrete_win_rate` counts a
    verdict as 1, 1/2 or 0; equal texts are a draw without asking. plo's protocol asks in both orders, with the judge
    prompt "instruction", and takes the mean (two contradictory verdicts are a draw). `official` asks once,
    in the order and with the prompt of `weighted_alpaca_eval_gpt4_turbo`. `length_controlled_win_rate` is that of the
    alpaca-eval package; it is NaN, with a note, against another baseline, for fewer than 100 verdicts, or without its file.
    Its interval and differences are a jackknife's: its items are 35 pseudo-values of groups of instructions, in the rows of
    the first 35 prompts, and NaN in the others.
    Rates are shares of the readable verdicts; `unreadable` is the share of the others. `length` is in characters;
    `empty` and `truncated` are the shares of answers without text, and of answers cut at the token limit.

    Args:
        instructions: number of instructions, spread evenly over the 805; None: all.
        baseline: `model_outputs.json` (or .json.gz) of another baseline, which also provides the instructions.
        data: folder with the hub's files (`alpaca_eval_gpt4_baseline.json`, `df_gamed.csv`), or with the layout of the AlpacaEval
            repository (`results/gpt4_1106_preview/model_outputs.json`); None: the subject's path for "alpaca_eval", or the hub.
        official: one order and AlpacaEval's prompt. With all instructions and the verdicts of gpt-4-1106-preview this is
            AlpacaEval 2. Its provider no longer serves that judge, so AlpacaEval 2 itself can only be recomputed from stored
            verdicts. A judge that thinks before it answers needs room: openai:MODEL(max_tokens=4096).
        think_end_token: end of a thought at the beginning of an answer, which is removed first; None: the thought stays.

    Raises:
        EvaluationError: the baseline's answers are not available, or the package alpaca-eval is not installed.

    Source: Dubois et al. 2024 (arXiv:2404.04475); https://github.com/tatsu-lab/alpaca_eval.
    """
    data = data or subject.paths.get("alpaca_eval")
    reference = _outputs(baseline or _baseline_file(data))
    total = len(reference)
    count = min(instructions or total, total)
    asked = reference.iloc[np.arange(count) * total // count]
    messages = [[{"role": "user", "content": text}] for text in asked["instruction"]]
    settings = {"temperature": temperature, "max_new_tokens": max_new_tokens}
    sample, about_answers = draw_answers("alpaca_eval", subject, messages, think_end_token, **settings)
    sample = sample.sort_values("prompt_id")
    rows = pd.DataFrame(
        {
            "instruction": asked["instruction"],
            "output_1": asked["output"],
            "generator_1": asked["generator"],
            "dataset": asked["dataset"],
            "output_2": sample["text"].to_numpy(),
            "generator_2": subject.name,
        }
    )
    template = official_template() if official else "instruction"
    judge = judging.judge(template)
    verdicts = _verdicts(rows, judging, template, official)
    rows["annotator"], rows["preference"] = judge.name, 1 + verdicts["p"]

    items = pd.DataFrame(
        {
            "prompt_id": rows.index,
            "win_rate": verdicts["p"],
            "discrete_win_rate": verdicts["win"],
            "length": rows["output_2"].str.len().astype(float),
            "base_length": rows["output_1"].str.len().astype(float),
            "unreadable": verdicts["p"].isna().astype(float),
            "consistency": verdicts["consistent"],
            "empty": sample["empty"].to_numpy(),
            "truncated": sample["truncated"].to_numpy(),
        }
    ).reset_index(drop=True)
    standard = set(rows["generator_1"]) == {BASELINE} and total == INSTRUCTIONS
    rates, notes = _rates(rows, data, standard)
    metrics = rates | means(items.drop(columns=["prompt_id", "win_rate", "base_length"]))
    if not np.isnan(rates["length_controlled_win_rate"]):
        values = length_controlled_items(rows, files=data).reindex(rows.index)
        items["length_controlled_win_rate"] = values.to_numpy()
    whole = official and standard and count == INSTRUCTIONS and judge.name == OFFICIAL_JUDGE
    protocol = "in one order, by AlpacaEval's rule and prompt" if official else "in both orders"
    label = "AlpacaEval 2" if whole else f"AlpacaEval prompts, judge {judge.name}"
    against = ", ".join(sorted(set(rows["generator_1"])))
    head = f"{label}: {count} of {total} instructions against {against}, {protocol}."
    if official and judge.name != OFFICIAL_JUDGE:
        notes.append(RETIRED)
    notes += about_answers
    if known := int(sample["prompt"].isin(set(subject.trained_on)).sum()):
        notes.append(f"{known} of the instructions are among the model's training prompts.")
    outputs = rows.rename(columns={"output_2": "output", "generator_2": "generator"})
    files = {
        "model_outputs.json": _json(outputs[["dataset", "instruction", "output", "generator"]]),
        "annotations.json": _json(rows),
    }
    lengths = {"win_rate": ("length", "base_length")}
    return Findings(metrics, items, (head, *notes), files=files, lengths=lengths)


def _verdicts(rows: pd.DataFrame, judging: JudgeSession, template, official: bool) -> pd.DataFrame:
    """Return the verdicts of `JudgeSession.verdicts`, b being the model's answer, with the index of `rows`."""
    questions = rows.rename(columns={"instruction": "prompt", "output_1": "a", "output_2": "b"})[["prompt", "a", "b"]]
    switched = questions["prompt"].map(official_order) & official
    questions.loc[switched, ["a", "b"]] = questions.loc[switched, ["b", "a"]].to_numpy()
    verdicts = judging.verdicts(questions, template, both=not official)
    for column in ("p", "win"):
        verdicts[column] = verdicts[column].where(~switched, 1 - verdicts[column])
    verdicts.loc[rows["output_1"] == rows["output_2"], "consistent"] = np.nan  # a draw without asking
    return verdicts


def _rates(rows: pd.DataFrame, data: Path | None, standard: bool) -> tuple[dict[str, float], list[str]]:
    """Return the package's rates as shares, NaN where not available, and notes about them."""
    readable, notes = int(rows["preference"].notna().sum()), []
    if unread := len(rows) - readable:
        notes.append(f"{unread} of {len(rows)} verdicts could not be read and are left out of the rates.")
    found, reason = win_rates(rows, length_controlled=False) if readable else {}, ""
    if not standard:
        reason = f"it is defined for all {INSTRUCTIONS} instructions against {BASELINE}"
    elif readable < ENOUGH:
        reason = f"its fit needs {ENOUGH} verdicts, and {readable} could be read"
    else:
        try:
            found = win_rates(rows, files=data)
        except EvaluationError as error:
            reason = str(error).rstrip(".")
    if reason:
        notes.append(f"No length-controlled win rate: {reason}.")
    elif set(rows["annotator"]) != {OFFICIAL_JUDGE}:
        notes.append("The length-controlled win rate uses difficulties of the instructions from GPT-4's verdicts.")
    names = {
        "win_rate": "win_rate",
        "win_rate_se": "standard_error",
        "length_controlled_win_rate": "length_controlled_winrate",
    }
    return {ours: found.get(theirs, float("nan")) / 100 for ours, theirs in names.items()}, notes


def _baseline_file(data: Path | None) -> Path:
    if data is not None:
        for name in ("model_outputs.json", "model_outputs.json.gz"):
            if (path := data / "results" / BASELINE / name).is_file():
                return path
    return official_file(data, "alpaca_eval_gpt4_baseline.json")


def _outputs(path: Path) -> pd.DataFrame:
    """Read outputs in the official format: instruction, output, generator, dataset; the index is the position."""
    try:
        text = path.read_bytes()
        rows = json.loads(gzip.decompress(text) if path.suffix == ".gz" else text)
        frame = pd.DataFrame.from_records(rows)[["instruction", "output", "generator"]].astype(object)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EvaluationError(
            f"The baseline's answers in {path} cannot be read ({type(error).__name__}: {error}). The file is a JSON list of "
            f'{{"instruction": ..., "output": ..., "generator": ...}}, AlpacaEval\'s model_outputs.json.'
        ) from None
    frame["dataset"] = [row.get("dataset", "") for row in rows]
    return frame


def _json(rows: pd.DataFrame) -> str:
    rows = rows.astype(object).where(rows.notna(), None)
    return json.dumps(rows.to_dict("records"), indent=1)
