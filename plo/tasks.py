"""Settings that suit a data source with a model of its own, used where an experiment does not give others."""

from collections.abc import Mapping
from typing import Any

# Settings by data source. Those beyond `data` are for an experiment without a model, or with the source's own.
TASKS: dict[str, dict[str, dict[str, Any] | list[Any]]] = {
    "pocket": {
        "model": {"name": "pocket", "peft": "full", "dtype": "float32"},
        "data": {"max_length": 64},
        "train": {"lr": 5e-4, "batch_size": 32, "steps": 62, "log_every": 10, "probe_every": 1000},
        "eval_at": [1.0],
        "evaluation": {
            "prompts": 86, "samples": 4, "max_new_tokens": 48, "batch_size": 344, "pairs": 172,
            "suite": ["efficiency", "credit"],
        },
    }
}  # fmt: skip


def with_task_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment's settings with those of its data source's task in place of defaults.

    Args:
        raw: settings by section, as in a file.
    """
    filled = dict(raw)
    task = TASKS.get(_named(raw.get("data"), "source"), {})
    own = _named(task.get("model"), "name")
    for section, settings in task.items():
        if section != "data" and _named(raw.get("model"), "name") not in (None, own):
            continue
        given = filled.get(section)
        if isinstance(settings, Mapping) and isinstance(given, Mapping | None):
            filled[section] = {**settings, **(given or {})}
        elif given is None:
            filled[section] = settings
    return filled


def _named(section: Any, key: str) -> Any:
    """Return the name that a section gives, as {key: name}; None without one."""
    return section.get(key) if isinstance(section, Mapping) else None
