"""Mathematics by avg@k: lm-eval's tasks with k sampled answers to each problem, each sample under a seed of its own."""

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from plo import store
from plo.caches import CACHES
from plo.evals.answers import THINK_END
from plo.evals.findings import Findings
from plo.evals.harness import restored_globals, run_tasks
from plo.evals.harness_tasks import load_tasks
from plo.evals.registry import EvaluationError, register_evaluation
from plo.identity import content_digest, sha256
from plo.subjects import Subject

VERSION = 1  # of the seeds and of what is kept


@register_evaluation(
    "avg_at_k",
    level="model",
    higher_is_better={"*.se": None, "*.se_samples": None, "*.pass": True, "*.exact_match*": True, "*.acc*": True},
    main_score="*.exact_match*",
    meaning={
        "*.se": "standard error of avg@k, over problems and samples",
        "*.se_samples": "part of the standard error of avg@k that more samples of the same problems would remove",
        "*.pass": "pass@k: share of problems that at least one of k samples solves",
        "*.exact_match*": "avg@k: share of samples that solve a problem, mean over problems",
        "*.acc*": "avg@k: accuracy over k samples, mean over problems",
    },
    license="MIT",
    citation="Gao et al., https://github.com/EleutherAI/lm-evaluation-harness",
)
def avg_at_k(
    subject: Subject,
    *,
    tasks: tuple[str, ...] = ("gsm8k",),
    k: PositiveInt = 8,
    temperature: PositiveFloat = 0.7,
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95,
    max_new_tokens: PositiveInt | None = None,
    include_path: Path | None = None,
    limit: PositiveInt | None = None,
    num_fewshot: NonNegativeInt | None = None,
    batch_size: PositiveInt = 8,
    chat: bool = False,
    think_end_token: str | None = THINK_END,
) -> Findings:
    """Answer each problem of lm-eval's tasks k times by sampling, and report the mean over samples and problems.

    With x_ij the metric of sample j of problem i, m_i = mean_j x_ij and s_i^2 the variance of x_ij over j (ddof 1), for
    every metric of lm-eval that is a mean over documents:

        <metric>             avg@k = mean_i m_i
        <metric>.se          sqrt(var_i(m_i) / n), ddof 1: for other problems and other samples
        <metric>.se_samples  sqrt(mean_i(s_i^2) / (n k)): for other samples of these problems; NaN for k = 1
        <metric>.pass        pass@k, if the metric is 0 or 1: share of problems with a sample of 1

    Sample j has a seed of its own, which follows from the subject's. It is kept on disk when all problems have been answered, so
    that a larger k, or a run that was killed, samples only what is missing.

    Args:
        tasks: names of tasks that generate text ("gsm8k", "minerva_math", "aime24"), tags or groups.
        max_new_tokens: maximum length of an answer; None: as the task says.
        include_path, limit, num_fewshot, batch_size, chat, think_end_token: as for `lm_eval`.

    Raises:
        EvaluationError: a task generates no text; and as for `lm_eval`.
    """
    digest = _digest(tasks, include_path, limit)
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
    if max_new_tokens is not None:
        sampling["max_gen_toks"] = max_new_tokens
    settings: dict[str, Any] = {"limit": limit, "num_fewshot": num_fewshot, "batch_size": batch_size, "chat": chat}
    kept: list[Mapping[str, Any]] = []
    for j in range(k):
        how = [VERSION, subject.identity, subject.seed, j, digest, sampling, settings, think_end_token]
        file = CACHES["harness"].path(sha256(how)[:32])
        if (sample := store.read_json(file)) is None:
            seed = int.from_bytes(hashlib.sha256(f"{subject.seed} {j}".encode()).digest()[:4], "little")
            seeds: dict[str, Any] = {"random_seed": seed, "numpy_random_seed": seed, "torch_random_seed": seed}
            run = run_tasks(
                "avg_at_k", subject, tasks, include_path, think_end_token, **settings, gen_kwargs=sampling, **seeds
            )
            rows = run.items.astype(object).where(run.items.notna(), None).to_dict("records")
            sample = {"rows": rows, "texts": run.texts, "notes": list(run.notes)}
            store.write_json(file, sample)
        kept.append(sample)
    frames = [pd.DataFrame(sample["rows"]).assign(sample=j) for j, sample in enumerate(kept)]
    table = pd.concat(frames, ignore_index=True)
    columns = [
        str(c) for c in table if c not in ("prompt_id", "task", "sample") and all(c in frame for frame in frames)
    ]
    table[columns] = table[columns].astype(float)
    metrics, items = _summary(table, columns, k)
    names = zip(table["prompt_id"], table["sample"], strict=True)
    table["text"] = [kept[j]["texts"].get(prompt, "") for prompt, j in names]
    head = f"avg@{k} at temperature {temperature:g}, top-p {top_p:g}; {table['prompt_id'].nunique()} problems."
    notes = dict.fromkeys(note for sample in kept for note in sample["notes"])
    return Findings(metrics, items, (head, *notes), {"avg_at_k_samples.json": table})


def _summary(table: pd.DataFrame, columns: Sequence[str], k: int) -> tuple[dict[str, float], pd.DataFrame]:
    """Return the metrics, and items whose means avg@k and pass@k are."""
    groups = table.groupby("prompt_id", sort=False)
    items = groups[["task"]].first()
    metrics: dict[str, float] = {}
    for column in columns:
        values = table[column].dropna()
        by_problem = values.groupby(table["prompt_id"], sort=False)
        means, n = by_problem.mean(), by_problem.ngroups
        items[column], metrics[column] = means, float(means.mean())
        metrics[f"{column}.se"] = float(means.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
        within = float(by_problem.var(ddof=1).mean()) if k > 1 else math.nan
        metrics[f"{column}.se_samples"] = math.sqrt(within / (n * k)) if k > 1 else math.nan
        if values.isin((0.0, 1.0)).all():
            items[f"{column}.pass"] = by_problem.max()
            metrics[f"{column}.pass"] = float(items[f"{column}.pass"].mean())
    return metrics, items.reset_index()


def _digest(tasks: Sequence[str], include_path: Path | None, limit: int | None) -> str:
    """Return a digest of the tasks and their documents, after checking that every task generates text."""
    with restored_globals():
        _, loaded = load_tasks(tasks, include_path)
        parts: list[Any] = [importlib.metadata.version("lm-eval"), list(tasks)]
        if include_path is not None:
            parts.append(content_digest(Path(include_path).expanduser()))
        for one in loaded:
            for task in one.get_all_tasks() if hasattr(one, "get_all_tasks") else [one]:
                if task.OUTPUT_TYPE != "generate_until":
                    raise EvaluationError(
                        f"avg_at_k samples answers, and the lm-eval task {task.config.task!r} generates none "
                        f"({task.OUTPUT_TYPE}): run it with lm_eval."
                    )
                docs = json.dumps(list(task.eval_docs)[:limit], sort_keys=True, default=str)
                parts.append([str(task.config.task), hashlib.sha256(docs.encode("utf-8", "surrogatepass")).hexdigest()])
    return sha256(parts)
