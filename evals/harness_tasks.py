"""Load tasks of the LM Evaluation Harness with their data; errors name the task, the cause and the remedy."""

import contextlib
import difflib
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from plo.evals.borrowed import NO_METRIC, check_lm_eval
from plo.evals.registry import EvaluationError


def load_tasks(tasks: Sequence[str], include_path: Path | None) -> tuple[Any, list[Any]]:
    """Return lm-eval's task manager, and the tasks and groups of these names with their data.

    Raises:
        EvaluationError: there is no such folder or task, or its package or data set is missing; or the task runs code that
            the model wrote.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise EvaluationError(f"lm_eval: include_path={str(include_path)!r} is not a folder of task files.")
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise EvaluationError(f"lm_eval needs the package lm-eval ({error}): pip install 'plo[evals]'.") from None
    check_lm_eval()
    manager = TaskManager(include_path=include_path, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = _built_in_tasks(include_path)
    loaded = {}
    for name in dict.fromkeys(tasks):
        if name not in manager.all_tasks:
            raise EvaluationError(
                f"lm-eval has no task {name!r}.{_near(name, manager.all_tasks)} `lm-eval ls tasks` lists them; for a task file "
                f"of your own, set include_path=FOLDER."
            )
        try:
            with _known_metrics(name):
                found: Any = manager.load([name])
        except StopIteration as error:  # lm-eval reads the first row
            raise EvaluationError(
                f"The data of the lm-eval task {name!r} has no rows: fix the data_files of its task file, or leave the task out."
            ) from error
        except ImportError as error:
            raise EvaluationError(
                f"The lm-eval task {name!r} needs the package {error.name!r}, which is not installed: "
                f"pip install {error.name}, or `lm-eval[{name}]` if there is such an extra."
            ) from error
        except (OSError, LookupError) as error:  # hub, file, or NLTK
            raise EvaluationError(
                f"The data of the lm-eval task {name!r} cannot be loaded: {str(error).strip()}. Load it once "
                f"online (datasets caches it), or put a task file of that name, with `dataset_path: json` and local data_files, "
                f"into a folder, and set include_path=FOLDER."
            ) from error
        if unsafe := [task for task, made in found["tasks"].items() if getattr(made, "UNSAFE_CODE", False)]:
            raise EvaluationError(f"The lm-eval task {unsafe[0]!r} runs code that the model wrote; plo does not.")
        children = {child for members in found.get("group_map", {}).values() for child in members}
        loaded |= {
            key: made for kind in ("tasks", "groups") for key, made in found[kind].items() if key not in children
        }
    return manager, list(loaded.values())


@contextlib.contextmanager
def _known_metrics(task: str) -> Iterator[None]:
    """Refuse a task with a metric that lm-eval does not know, which lm-eval itself only logs."""
    lost: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if found := re.match(f"(.+) {NO_METRIC}", record.getMessage()):
                lost.append(found[1])

    logger, listener = logging.getLogger("lm_eval"), Listener()
    logger.addHandler(listener)
    try:
        yield
    finally:
        logger.removeHandler(listener)
        if lost:  # whatever else lm-eval raises because of it
            from lm_eval.api.registry import metric_registry

            raise EvaluationError(
                f"The lm-eval task {task!r} names the metric {lost[0]!r}, which lm-eval does not have."
                f"{_near(lost[0], metric_registry)} Fix the metric_list of its task file."
            )


@cache
def _built_in_tasks(include_path: Path | None) -> Any:
    """Return a manager of the built-in tasks too, once per process: reading their 14,000 files takes eight seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=4)
    return f" Near: {', '.join(close)}." if close else ""
