"""Run tasks of the LM Evaluation Harness (https://github.com/EleutherAI/lm-evaluation-harness) on a model in memory."""

import contextlib
import copy
import importlib
import logging
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import NonNegativeInt, PositiveInt

from plo.evals.answers import THINK_END
from plo.evals.findings import Findings
from plo.evals.harness_tasks import load_tasks
from plo.evals.registry import EvaluationError, register_evaluation
from plo.subjects import Subject

PAPERS = ("ifeval", "gsm8k", "truthfulqa_mc2", "arc_challenge", "hellaswag", "mmlu", "winogrande")
HIGHER_IS_BETTER = {
    "*.acc*": True,
    "*.exact_match*": True,
    "*.prompt_level_*": True,
    "*.inst_level_*": True,
    "*perplexity*": False,
    "*.bits_per_byte*": False,
}


@register_evaluation(
    "lm_eval",
    level="model",
    higher_is_better=HIGHER_IS_BETTER,
    meaning={
        "*.acc*": "share of questions answered correctly",
        "*.exact_match*": "share of problems whose final answer is the right one",
        "*.prompt_level_*": "share of prompts of which every instruction is followed",
        "*.inst_level_*": "share of instructions that are followed",
        "*perplexity*": "perplexity of the task's texts",
        "*.bits_per_byte*": "bits a byte of the task's texts",
    },
    license="MIT",
    citation="Gao et al., https://github.com/EleutherAI/lm-evaluation-harness",
)
def lm_eval(
    subject: Subject,
    *,
    tasks: tuple[str, ...] = PAPERS,
    include_path: Path | None = None,
    limit: PositiveInt | None = None,
    num_fewshot: NonNegativeInt | None = None,
    batch_size: PositiveInt = 8,
    chat: bool = False,
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Run lm-eval's tasks on the subject's model in memory, adapters included; nothing is loaded again.

    Metrics are lm-eval's own, `<task>.<metric>` and, where a task reads an answer in several ways,
    `<task>.<metric>.<filter>` (gsm8k.exact_match.strict-match); a group such as mmlu has its aggregate besides its tasks.
    Standard errors are left out: they follow from the items. `items` has one row per document, `prompt_id`
    "<task>/<document's number>/<its hash>", so that cells are paired by document, and a column for each metric whose
    mean over the documents is the reported figure (not IFEval's share over instructions, nor a perplexity over words).

    Args:
        tasks: names of tasks, tags or groups.
        include_path: folder of task files in lm-eval's YAML, which take precedence over built-in ones of the same name. A file
            with local rows has `dataset_path: json` and `dataset_kwargs: {data_files: {test: FILE.jsonl}}`, FILE absolute or
            relative to the working folder; with `include: .../gsm8k.yaml` it asks as the built-in task does.
        limit: number of documents per task, the first ones; for trials, as the figures do not compare with published ones.
        num_fewshot: examples in the prompt; None: the default of each task.
        batch_size: sequences per forward pass.
        chat: apply the tokenizer's chat template, with examples as earlier turns.
        think_end_token: lm-eval's option: only the generated text after this mark counts; None: all of it. It is passed on only
            if the tokenizer or its chat template has the mark, because lm-eval then also strips leading white space.

    Raises:
        EvaluationError: there is no model, package, task, data set or chat template; or a task runs code the model wrote.
    """
    settings = {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size, "chat": chat}
    run = run_tasks("lm_eval", subject, tasks, include_path, think_end_token, **settings)
    return Findings(run.metrics, run.items, run.notes)


@dataclass(frozen=True)
class TaskRun:
    """Figures that lm-eval computed for its tasks, with their documents and texts.

    Attributes:
        metrics: lm-eval's figures by plo's names.
        items: one row per document, with a column for each metric that is a mean over documents.
        texts: text that each document was answered with, by prompt_id; empty for tasks that generate none.
    """

    metrics: dict[str, float]
    items: pd.DataFrame
    notes: tuple[str, ...]
    texts: dict[str, str]


def run_tasks(
    evaluation: str,
    subject: Subject,
    tasks: Sequence[str],
    include_path: Path | None,
    think_end_token: str | None,
    *,
    limit: int | None,
    num_fewshot: int | None,
    batch_size: int,
    chat: bool,
    **settings: Any,
) -> TaskRun:
    """Run lm-eval's tasks once; see `lm_eval` for the arguments.

    Args:
        evaluation: name of the evaluation, for messages.
        settings: further arguments of lm-eval's `simple_evaluate`, such as gen_kwargs and torch_random_seed.

    Raises:
        EvaluationError: as `lm_eval`.
    """
    model, tokenizer = subject.causal_lm()
    if chat and not tokenizer.chat_template:
        raise EvaluationError(
            f"{evaluation}: the tokenizer of {subject.name} has no chat template: leave out chat=True."
        )
    with restored_globals():
        manager, loaded = load_tasks(tasks, include_path)
        library: Any = importlib.import_module("lm_eval")  # its types are wrong in places
        base: Any = importlib.import_module("lm_eval.models.huggingface").HFLM

        end = think_end_token if _knows_mark(tokenizer, think_end_token) else None
        thoughts = []

        class Counting(base):
            """Counts the generations that contain a thought; lm-eval keeps only what follows it."""

            def tok_decode(self, tokens: Any, *arguments: Any, **options: Any) -> Any:
                text = super().tok_decode(tokens, *arguments, **options)
                thoughts.extend([1] if end and end in text else [])
                return text

        # Its own copy of the tokenizer: lm-eval sets padding token and side.
        lm = Counting(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, think_end_token=end)
        found = library.simple_evaluate(
            lm, tasks=loaded, task_manager=manager, limit=limit, num_fewshot=num_fewshot, batch_size=batch_size,
            apply_chat_template=chat, bootstrap_iters=0, **settings,
        )  # fmt: skip
    metrics = {
        _name(task, key): float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if _is_metric(key, value)
    }
    local = [name for name in tasks if include_path and _within(manager.task_index[name].yaml_path, include_path)]
    notes = _notes(found, library.__version__, chat, limit, local)
    if thoughts:
        notes = (*notes, f"{len(thoughts)} generated texts begin with a thought, which is removed up to {end}.")
    return TaskRun(metrics, _items(found, metrics), notes, _texts(found))


def _knows_mark(tokenizer: Any, mark: str | None) -> bool:
    """Return whether the tokenizer has the mark as a token, or its chat template names it."""
    return bool(mark) and (mark in tokenizer.get_vocab() or mark in str(tokenizer.chat_template or ""))


@contextlib.contextmanager
def restored_globals() -> Iterator[None]:
    """Undo what lm-eval does to the process: it seeds every generator, sets environment variables and logs warnings."""
    logger = logging.getLogger("lm_eval")
    level, python, numpy, environment = logger.level, random.getstate(), np.random.get_state(), dict(os.environ)
    logger.setLevel(logging.ERROR)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        logger.setLevel(level)
        random.setstate(python)
        np.random.set_state(numpy)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


def _texts(found: Mapping[str, Any]) -> dict[str, str]:
    """Return the first generated text for each document."""
    texts: dict[str, str] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            said = sample["resps"][0][0]
            if isinstance(said, str):
                texts.setdefault(_prompt_id(task, sample), said)
    return texts


def _prompt_id(task: str, sample: Mapping[str, Any]) -> str:
    return f"{task}/{sample['doc_id']}/{sample['doc_hash'][:8]}"


def _items(found: Mapping[str, Any], metrics: Mapping[str, float]) -> pd.DataFrame:
    """Return one row per document, with the columns whose mean is the metric of their name."""
    rows: dict[str, dict[str, Any]] = {}
    above = _groups_above(found["group_subtasks"])
    for task, samples in found["samples"].items():
        for sample in samples:  # one per document and filter
            prompt_id = _prompt_id(task, sample)
            row = rows.setdefault(prompt_id, {"prompt_id": prompt_id, "task": task})
            for metric in sample["metrics"]:
                if isinstance(sample[metric], bool | int | float | np.number):  # else a part of a corpus-level figure
                    key = f"{metric},{sample['filter']}"
                    row |= {_name(owner, key): float(sample[metric]) for owner in (task, *above.get(task, ()))}
    items = pd.DataFrame(rows.values(), columns=["prompt_id", "task", *metrics])
    # A task may aggregate a metric by any function: comparing the result shows whether it was the mean.
    means = items[list(metrics)].astype(float).mean()
    return items.drop(columns=[name for name in metrics if not math.isclose(means[name], metrics[name], rel_tol=1e-9)])


def _groups_above(children: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return {task: the groups it is in, groups of groups included}."""
    above: dict[str, list[str]] = {}

    def descend(group: str, name: str) -> None:
        for child in children.get(name, ()):
            above.setdefault(child, []).append(group)
            descend(group, child)

    for group in children:
        descend(group, group)
    return above


def _notes(
    found: Mapping[str, Any], version: str, chat: bool, limit: int | None, local: Sequence[str]
) -> tuple[str, ...]:
    below = {child for children in found["group_subtasks"].values() for child in children}
    shots = found["n-shot"]
    versions = [
        f"{name} (version {v}, {shots.get(name, '?')}-shot)"
        for name, v in found["versions"].items()
        if name not in below
    ]
    notes = [f"lm-eval {version}: {', '.join(versions)}; chat template {'applied' if chat else 'not applied'}."]
    if limit is not None:
        notes.append(f"Only the first {limit} documents of each task, so not comparable with published figures.")
    if local:
        notes.append(
            f"From local task files: {', '.join(local)}; comparable with published figures only if their rows are the same."
        )
    return tuple(notes)


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and not key.split(",")[0].endswith("_stderr") and isinstance(value, int | float | np.number)


def _name(task: str, key: str) -> str:
    """Return plo's name of a task's "exact_match,strict-match", in characters that MLflow allows; "none" is no filter."""
    metric, _, how = key.partition(",")
    name = f"{task}.{metric}" if how == "none" else f"{task}.{metric}.{how}"
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _within(path: Path | None, folder: Path) -> bool:
    return path is not None and path.resolve().is_relative_to(Path(folder).resolve())
