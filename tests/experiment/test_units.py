"""The order in which units run, whatever engine runs them: an engine that is scripted stands for processes."""

from types import SimpleNamespace

import pytest

from plo.experiment import matrix
from plo.experiment.engines import EngineError, InProcess, engine, run_units
from plo.experiment.progress import CellsProgress, Progress
from plo.experiment.units import Outcome, Schedule, Unit

DONE, LOST = Outcome("done"), None


def unit(name, *needs, kind="cell"):
    return Unit(kind, name, name, "dpo", 0, needs=needs)


def test_units_come_after_those_they_need():
    schedule = Schedule(
        [unit("dpo", "reference"), unit("reference"), unit("ipo", "reference", "stages"), unit("stages")]
    )
    assert [one.name for one in schedule.ready()] == ["reference", "stages"]
    schedule.end(unit("reference"), DONE)
    assert [one.name for one in schedule.ready()] == ["dpo", "stages"]
    schedule.end(unit("stages"), DONE)
    assert [one.name for one in schedule.ready()] == ["dpo", "ipo"]


def test_what_is_finished_is_not_run_and_needs_of_it_are_met():
    schedule = Schedule([unit("reference"), unit("dpo", "reference")], finished=["reference"])
    assert [one.name for one in schedule.ready()] == ["dpo"]


def test_what_needs_a_failed_unit_fails_with_its_name():
    schedule = Schedule([unit("reference"), unit("dpo", "reference"), unit("evaluations", "dpo"), unit("other")])
    schedule.end(unit("reference"), Outcome("failed", "no memory"))
    assert [one.name for one in schedule.ready()] == ["other"]
    assert schedule.ready() and schedule.failed == {
        "reference": "no memory",
        "dpo": "it needs reference, which failed",
        "evaluations": "it needs dpo, which failed",
    }


class Scripted:
    """An engine whose units end as a script says; `room` is that of two processes."""

    several = True

    def __init__(self, **outcomes):
        self.outcomes = {name: list(ends) for name, ends in outcomes.items()}
        self.order, self.running = [], []

    def room(self):
        return len(self.running) < 2

    def submit(self, session, one, advance):
        self.order.append(one.name)
        self.running.append(one)

    def collect(self, seconds):
        one = self.running.pop(0)
        return [(one, self.outcomes.get(one.name, [DONE]).pop(0))]

    def close(self, interrupted=False):
        raise AssertionError("the caller closes it")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(engine, "RETRY_SECONDS", 0.01)


def run(scripted, *units):
    return run_units(
        scripted,
        SimpleNamespace(is_free=lambda one: True),
        units,
        [],
        CellsProgress({one.name: (1, 1) for one in units}),
    )


def test_a_unit_whose_process_is_lost_runs_again_three_times_at_most(caplog):
    scripted = Scripted(dpo=[LOST, DONE], ipo=[LOST, LOST, LOST])
    assert run(scripted, unit("dpo"), unit("ipo"), unit("sft")) == {
        "ipo": "its process was lost 3 times (killed, or out of memory)"
    }
    assert sorted(scripted.order) == ["dpo"] * 2 + ["ipo"] * 3 + ["sft"]
    assert "The process that did dpo was lost: it is run again." in caplog.text


def test_units_of_other_processes_are_tried_again_until_they_are_done():
    scripted = Scripted(dpo=[Outcome("held", "process 7")] * 3 + [DONE])
    assert run(scripted, unit("dpo"), unit("sft", "dpo"), unit("ipo")) == {}
    assert scripted.order.count("dpo") == 4 and scripted.order[-1] == "sft"
    assert scripted.order.index("ipo") == 1, "others run meanwhile"


def test_a_full_disk_ends_everything():
    scripted = Scripted(dpo=[Outcome("failed", "runs cannot be written: the disk is full.", fatal=True)])
    with pytest.raises(EngineError, match="dpo: runs cannot be written"):
        run(scripted, unit("dpo"), unit("sft"))


def test_in_process_units_run_one_after_the_other_and_report_their_progress():
    done = []

    class Session:
        def attempt(self, one, advance):
            advance(3, 2)
            done.append(one.name)
            return DONE

    progress = CellsProgress({"a": (10, 8), "b": (10, 8)})
    assert run_units(InProcess(), Session(), [unit("b", "a"), unit("a")], [], progress) == {}
    assert done == ["a", "b"] and progress.cells_done == 2 and progress.steps_done == 16


def test_units_are_written_and_read_as_json():
    import json

    one = Unit("trial", "k", "dpo seed 1", "dpo", 1, {"train.lr": 1e-4}, ("r", "s"), {"digest": "d"})
    assert Unit.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_evaluations_with_a_budget_for_the_judge_run_in_one_process(monkeypatch):
    """The budget is of a launch, and every worker would have one of its own."""
    calls = []
    monkeypatch.setattr(
        matrix,
        "run_units",
        lambda engine, session, units, *_: calls.append((type(engine), [u.name for u in units])) or {},
    )
    evaluation = SimpleNamespace(judge_calls=5, judge_money=None)
    session = SimpleNamespace(
        experiment=SimpleNamespace(evaluation=evaluation),
        tracker=SimpleNamespace(finished=lambda *_: []),
        parent="run",
        work=lambda one: (1, 1),
    )
    units = [unit("dpo"), unit("evaluations of dpo", "dpo", kind="evaluations")]
    matrix._run(Scripted(), session, units, Progress())
    assert calls == [(Scripted, ["dpo"]), (InProcess, ["evaluations of dpo"])]
    calls.clear()
    evaluation.judge_calls = None
    matrix._run(Scripted(), session, units, Progress())
    assert calls[0] == (Scripted, ["dpo", "evaluations of dpo"])
