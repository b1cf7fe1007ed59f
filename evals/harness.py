"""Tasks of the LM Evaluation Harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness) on a model in memory."""

import contextlib
import copy
import difflib
import logging
import math
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import NonNegativeInt, PositiveInt

from plo.evals.answers import THINK_END
from plo.evals.findings import Findings
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
    """lm-eval's tasks on the subject's model as it stands, its adapters on: nothing is loaded again.

    Metrics are lm-eval's own, `<task>.<metric>` and, where a task reads an answer in several ways,
    `<task>.<metric>.<filter>` (gsm8k.exact_match.strict-match); a group such as mmlu has its aggregate beside its tasks.
    Standard errors are left out: they follow from the items. `items` has a row a document, `prompt_id`
    "<task>/<document's number>/<its hash>", so that cells pair by what was asked, and a column for each metric whose
    mean over the documents is the reported figure (not IFEval's share over instructions, nor a perplexity over words).

    Args:
        tasks: names of tasks, tags or groups.
        include_path: folder of task files in lm-eval's YAML; they go before built-in ones of the same name. A file of local
            rows says `dataset_path: json` and `dataset_kwargs: {data_files: {test: FILE.jsonl}}`, FILE absolute or
            relative to the working folder; with `include: .../gsm8k.yaml` it asks as the built-in task does.
        limit: documents of each task, the first ones; for trials: the figures do not compare with published ones.
        num_fewshot: examples in the prompt; None: what each task says.
        batch_size: sequences a forward pass.
        chat: put questions through the tokenizer's chat template, examples as earlier turns.
        think_end_token: lm-eval's: of what is generated, what follows it counts; None: everything does. Given to lm-eval only
            where the tokenizer or its chat template knows the mark, as lm-eval then strips leading white space too.

    Raises:
        EvaluationError: no model, package, task, data set or chat template; or a task that runs code the model wrote.
    """
    model, tokenizer = subject.causal_lm()
    if chat and not tokenizer.chat_template:
        raise EvaluationError(f"lm_eval: the tokenizer of {subject.name} has no chat template: leave out chat=True.")
    with _as_found():
        manager, loaded = _load(tasks, include_path)
        from lm_eval import __version__, simple_evaluate
        from lm_eval.models.huggingface import HFLM

        end = think_end_token if _knows(tokenizer, think_end_token) else None
        thoughts = []

        class Counting(HFLM):
            """Counts the generations that hold a thought: lm-eval keeps what follows it alone."""

            def tok_decode(self, tokens: Any, *arguments: Any, **options: Any) -> Any:
                text = super().tok_decode(tokens, *arguments, **options)
                thoughts.extend([1] if end and end in text else [])
                return text

        # Its own copy of the tokenizer: lm-eval sets padding token and side.
        lm = Counting(pretrained=model, tokenizer=copy.deepcopy(tokenizer), batch_size=batch_size, think_end_token=end)
        found = simple_evaluate(
            lm, tasks=loaded, task_manager=manager, limit=limit, num_fewshot=num_fewshot, batch_size=batch_size,
            apply_chat_template=chat, bootstrap_iters=0,
        )  # fmt: skip
    metrics = {
        _name(task, key): float(value)
        for task, values in found["results"].items()
        for key, value in values.items()
        if _is_metric(key, value)
    }
    local = [name for name in tasks if include_path and _within(manager.task_index[name].yaml_path, include_path)]
    notes = _notes(found, __version__, chat, limit, local)
    if thoughts:
        notes = (*notes, f"{len(thoughts)} generated texts begin with a thought, which is cut up to {end}.")
    return Findings(metrics, _items(found, metrics), notes)


def _knows(tokenizer: Any, mark: str | None) -> bool:
    """Return whether the tokenizer has the mark as a token, or its chat template names it."""
    return bool(mark) and (mark in tokenizer.get_vocab() or mark in str(tokenizer.chat_template or ""))


def _load(tasks: Sequence[str], include_path: Path | None) -> tuple[Any, list[Any]]:
    """lm-eval's task manager, and the tasks and groups of these names with their data."""
    if include_path is not None and not Path(include_path).is_dir():
        raise EvaluationError(f"lm_eval: include_path={str(include_path)!r} is no folder of task files.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(f"lm_eval needs the package lm-eval ({error}): pip install 'plo[evals]'.") from None
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = _with_built_in(include_path)
    loaded = {}
    for name in dict.fromkeys(tasks):
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=4)
            hint = f" Near: {', '.join(near)}." if near else ""
            raise EvaluationError(
                f"lm-eval has no task {name!r}.{hint} `lm-eval ls tasks` lists them; a task file of your own is found with "
                f"include_path=FOLDER."
            )
        try:
            with _no_metric_lost(name):
                found = manager.load([name])
        except StopIteration as error:  # its first row is looked at
            raise EvaluationError(
                f"The data of the lm-eval task {name!r} has no rows: mend the data_files of its task file, or leave it out."
            ) from error
        except ImportError as error:
            raise EvaluationError(
                f"The lm-eval task {name!r} needs the package {error.name!r}, which is not installed: "
                f"pip install {error.name}, or `lm-eval[{name}]` if there is such an extra."
            ) from error
        except (OSError, LookupError) as error:  # hub or file, and NLTK's way of saying it
            raise EvaluationError(
                f"The data of the lm-eval task {name!r} cannot be loaded: {str(error).strip()}. Load it once with a "
                f"connection (datasets keeps it), or put a task file of that name into a folder, with `dataset_path: json` "
                f"and local data_files, and name the folder: include_path=FOLDER."
            ) from error
        if unsafe := [task for task, made in found["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]:
            raise EvaluationError(f"The lm-eval task {unsafe[0]!r} runs code that the model wrote; plo does not.")
        children = {child for members in found.get("group_map", {}).values() for child in members}
        loaded |= {
            key: made for kind in ("tasks", "groups") for key, made in found[kind].items() if key not in children
        }
    return manager, list(loaded.values())


@contextlib.contextmanager
def _no_metric_lost(task: str) -> Iterator[None]:
    """Refuse a task with a metric that lm-eval does not know: it only logs that, and reports the others.

    Raises:
        EvaluationError: names the metric, and near ones.
    """
    lost: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(r"(.+) not found in the evaluate library", record.getMessage()):
                lost.append(found[1])

    logger, listener = logging.getLogger("lm_eval"), Listener()
    logger.addHandler(listener)
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    finally:
        logger.removeHandler(listener)
    if lost:
        from lm_eval.api.registry import metric_registry

        close = difflib.get_close_matches(lost[0], list(metric_registry), n=3)
        hint = f" Near: {', '.join(close)}." if close else ""
        raise EvaluationError(
            f"The lm-eval task {task!r} asks for the metric {lost[0]!r}, which lm-eval does not have.{hint} Mend the "
            f"metric_list of its task file."
        ) from error
    if error is not None:
        raise error


@cache
def _with_built_in(include_path: Path | None) -> Any:
    """lm-eval's built-in tasks are 14,000 files, which take eight seconds to read: once a process."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


@contextlib.contextmanager
def _as_found() -> Iterator[None]:
    """lm-eval seeds every generator, sets variables of the hub and warns of what is meant: undone after it."""
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


def _items(found: Mapping[str, Any], metrics: Mapping[str, float]) -> pd.DataFrame:
    """A row a document; the columns whose mean is the metric of their name."""
    rows: dict[str, dict[str, Any]] = {}
    above = _groups_above(found["group_subtasks"])
    for task, samples in found["samples"].items():
        for sample in samples:  # one a document and filter
            prompt_id = f"{task}/{sample['doc_id']}/{sample['doc_hash'][:8]}"
            row = rows.setdefault(prompt_id, {"prompt_id": prompt_id, "task": task})
            for metric in sample["metrics"]:
                if isinstance(sample[metric], bool | int | float | np.number):  # else parts of a figure of the corpus
                    key = f"{metric},{sample['filter']}"
                    row |= {_name(owner, key): float(sample[metric]) for owner in (task, *above.get(task, ()))}
    items = pd.DataFrame(rows.values(), columns=["prompt_id", "task", *metrics])
    # How a metric is aggregated is the task's own affair (a function, even): its result tells whether it was the mean.
    means = items[list(metrics)].astype(float).mean()
    return items.drop(columns=[name for name in metrics if not math.isclose(means[name], metrics[name], rel_tol=1e-9)])


def _groups_above(children: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """{task: the groups it is in, those of groups included}."""
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
    told = [
        f"{name} (version {v}, {shots.get(name, '?')}-shot)"
        for name, v in found["versions"].items()
        if name not in below
    ]
    notes = [f"lm-eval {version}: {', '.join(told)}; chat template {'applied' if chat else 'not applied'}."]
    if limit is not None:
        notes.append(f"Only the first {limit} documents of each task: not comparable with published figures.")
    if local:
        notes.append(f"From local task files: {', '.join(local)}; comparable with published figures if their rows are.")
    return tuple(notes)


def _is_metric(key: str, value: Any) -> bool:
    return "," in key and not key.split(",")[0].endswith("_stderr") and isinstance(value, int | float | np.number)


def _name(task: str, key: str) -> str:
    """lm-eval's "exact_match,strict-match" of a task, in the characters that MLflow takes; the filter "none" is no filter."""
    metric, _, how = key.partition(",")
    name = f"{task}.{metric}" if how == "none" else f"{task}.{metric}.{how}"
    return re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)


def _within(path: Path | None, folder: Path) -> bool:
    return path is not None and path.resolve().is_relative_to(Path(folder).resolve())
