"""The command `tune`: the tuning of an experiment, without its comparison."""

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from plo.cli.overrides import read_experiment
from plo.cli.parameters import Address, EngineName, Json, Plugins, Settings, Store, Workers
from plo.cli.shared import console, silence_libraries, terminal_progress
from plo.cli.tables import print_rows
from plo.terminal import say

if TYPE_CHECKING:
    from plo.experiment.tuning import Tuned


def tune(
    arguments: Settings = [],  # noqa: B006
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
    as_json: Json = False,
    engine: EngineName = "local",
    workers: Workers = None,
    address: Address = None,
):
    """Tune every loss of an experiment, and compare nothing yet; plo compare then reuses every trial.

    Run again, it continues where it stopped.

    Examples:
        plo tune experiment.yaml tuning.trials=8
        plo tune losses=dpo,ipo data=hh tuning.trials=4 name=mine
    """
    experiment = read_experiment(arguments, {"plugins": plugin, "store": store})
    silence_libraries()
    from plo.distributed import is_main
    from plo.experiment.engines import get_engine
    from plo.experiment.matrix import compare

    runs = get_engine(engine, workers, address)
    tuned = compare(experiment, terminal_progress(), only_tuning=True, engine=runs).tuned
    if not is_main():
        return
    if as_json:
        print_rows([{"loss": one.given.name, "chosen": one.variant.name, **one.record} for one in tuned], as_json=True)
        return
    print_tuned(tuned)
    options = [*(f"--plugin={path}" for path in plugin), *([f"--store={store}"] if store else [])]
    say(console, "\nCompare them: ", (f"plo compare {shlex.join([*arguments, *options])}", "bold"))


def print_tuned(tuned: "Sequence[Tuned]") -> None:
    """Print the settings that were chosen for each variant, with their scores and their cost."""
    record = tuned[0].record
    title = f"{record['metric']} on the tuning prompts, {record['trials']} trials each, {record['digest']}"
    print_rows(list(_rows(tuned)), title=title)
    if edges := {one.given.name: one.record["edges"] for one in tuned if one.record["edges"]}:
        where = "; ".join(f"{name}: {', '.join(names)}" for name, names in edges.items())
        say(console, f"\nAt the border of its range, so that a better value may lie outside: {where}.")
        say(console, "tuning.search widens a range.")
    if beyond := [one.given.name for one in tuned if not one.record["within_kl"]]:
        say(console, f"\nNo trial had a KL within tuning.max_kl, so the settings as given stay: {', '.join(beyond)}.")


def _rows(tuned: "Sequence[Tuned]") -> Iterator[dict[str, Any]]:
    for one in tuned:
        chosen = " ".join(f"{name.removeprefix('train.')}={value:g}" for name, value in one.record["point"].items())
        scores = {name: "diverged" if (v := one.record[name]) is None else f"{v:.3f}" for name in ("default", "score")}
        yield {
            "loss": one.given.name,
            "chosen": chosen or "as given",
            "as given": scores["default"],
            "tuned": scores["score"],
            "edges": ", ".join(name.removeprefix("train.") for name in one.record["edges"]) or "-",
            "seconds": f"{one.record['seconds']:.0f}",
        }
