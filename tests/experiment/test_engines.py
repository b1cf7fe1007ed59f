"""Engines on real processes: equal tables, nothing done twice, and nothing lost where processes are killed."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from plo.cli import app
from plo.experiment.engines import EngineError, InProcess, get_engine
from plo.experiment.engines.pool import Pool
from plo.experiment.matrix import compare
from plo.experiment.session import Session
from plo.tracking import Tracker

POCKET = {
    "losses": ["dpo", "ipo"],
    "seeds": [0, 1],
    "data": {"source": "pocket", "options": {"pairs": 96}},
    "model": "pocket",
    "train": {"steps": 4, "checkpoint_every": 1},
    "eval_at": [1.0],
    "evaluation": {"prompts": 8, "samples": 2, "suite": ["repetition"]},
}


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A factory of experiments of eight small cells, in a folder and a home of their own."""
    from plo.config import load_experiment

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker: another number of threads adds in another order
    yield lambda name="small", **changes: load_experiment(None, {**POCKET, "name": name, **changes})
    torch.set_num_threads(threads)


def table(name):
    """Metrics of every cell by its name; each is finished once."""
    tracker = Tracker("plo.db", create=False)
    [comparison] = tracker.comparisons(name)
    runs = tracker._search(parent=comparison.run_id, kind="cell")
    assert not [run.name for run in runs if run.status == "RUNNING"]
    finished = [run.name for run in runs if run.status == "FINISHED"]
    assert len(finished) == len(set(finished)), "done twice"
    times = ("tokens_per_second", "seconds", "peak_memory_gb")
    return {
        cell.name: {name: value for name, value in cell.metrics.items() if not name.endswith(times)}
        for cell in comparison.cells()
    }


def workers(of=None):
    found = []
    for process in psutil.Process(of).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "plo.experiment.engines.worker" in process.cmdline():
                found.append(process)
    return found


def test_two_workers_give_the_table_of_one_process_though_one_is_killed(experiment, caplog):
    assert not compare(experiment("one")).failed

    def kill():
        runs = Tracker("plo.db", create=False)
        while not any(run.status == "RUNNING" and run.name.startswith("dpo") for run in runs._search(kind="cell")):
            time.sleep(0.05)
        workers()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    assert not compare(experiment("two"), engine=Pool(2)).failed
    killer.join()
    assert "was lost: it is run again" in caplog.text
    one, two = table("one"), table("two")
    assert one == two and len(one) == 8
    assert not workers(), "no process is left"


def test_two_commands_at_once_share_the_cells(experiment, tmp_path):
    (tmp_path / "small.yaml").write_text(
        "name: shared\nlosses: [dpo, ipo]\nseeds: [0, 1]\nmodel: pocket\ndata: {source: pocket, options: {pairs: 96}}\n"
        "train: {steps: 4, checkpoint_every: 1}\neval_at: [1.0]\nevaluation: {prompts: 8, samples: 2, suite: [repetition]}\n"
    )
    homes = [{**os.environ, "PLO_HOME": str(tmp_path / name)} for name in ("one", "another")]  # as of two users
    command = [sys.executable, "-m", "plo", "compare", "small.yaml"]
    both = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) for env in homes]
    said = [one.communicate(timeout=1800)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert len(table("shared")) == 8
    done = [[line.split(":")[0] for line in text.splitlines() if line.startswith("done")] for text in said]
    assert sorted(done[0] + done[1]) == sorted(f"done   {name}" for name in table("shared"))


def test_a_signal_stops_the_workers_at_a_checkpoint(experiment, tmp_path):
    (tmp_path / "long.yaml").write_text(
        "name: long\nlosses: [dpo]\nseeds: [0]\nmodel: pocket\ndata: {source: pocket, options: {pairs: 96}}\n"
        "train: {steps: 4000, checkpoint_every: 50}\neval_at: [1.0]\nevaluation: {prompts: 8, samples: 2, suite: [repetition]}\n"
    )

    def saved():
        return [int(one.name.removeprefix("checkpoint-")) for one in tmp_path.glob("runs/*/dpo*/checkpoint-*")]

    command = [sys.executable, "-m", "plo", "compare", "long.yaml", "--workers", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 900
    while not list(tmp_path.glob("runs/*/dpo*/checkpoint-50")) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = workers(process.pid)  # takes longer than saving does
    regular = max(saved())
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "Interrupted (SIGTERM)" in said and "Start the same command again" in said
    assert found and not any(one.is_running() for one in found)
    status = {cell.name: cell.status for cell in Tracker("plo.db").cells()}
    assert status["dpo seed 0"] == "KILLED"
    assert max(saved()) > regular, "the work since the last regular one is kept"


@pytest.mark.parametrize("shared", [pytest.param(True, marks=pytest.mark.slow), False])
def test_an_evaluation_by_itself_compares_with_the_sft_that_is_the_reference(experiment, shared):
    """As in a worker that does nothing else, or where an evaluation is added to a finished comparison."""
    sft = {
        "stages": ["sft", "preference"],
        "sft": {"steps": 3},
        "share_stages": shared,
        "losses": ["dpo"],
        "seeds": [0],
    }
    credit = {**POCKET["evaluation"], "suite": ["credit"]}
    none = {**POCKET["evaluation"], "suite": []}
    compare(experiment("at-once", **sft, evaluation=credit))
    compare(experiment("later", **sft, evaluation=none))
    compare(experiment("later", **sft, evaluation=credit))

    def found(name):
        [cell] = [one for one in Tracker("plo.db").cells(name) if one.name == "dpo seed 0"]
        return [finding.metrics for finding in cell.findings]

    assert found("at-once") == found("later") != []


def test_an_evaluation_in_between_does_not_change_what_a_cell_starts_from(experiment):
    """The evaluation of a cell of seed 0 between two cells of seed 1, as a worker of a pool may get them."""
    credit = {**POCKET["evaluation"], "suite": ["credit"]}
    settings = experiment("between", stages=["sft", "preference"], sft={"steps": 3}, evaluation=credit)
    session = Session.open(settings)
    units = {unit.name: unit for unit in session.units(session.cells(session.variants, 2))}
    session.begin(list(units.values()))
    for name in ("reference seed 0", "dpo seed 0", "reference seed 1", "dpo seed 1"):
        assert session.attempt(units[name]).state == "done"
    assert session.attempt(units["evaluations of dpo seed 0"]).state == "done"
    assert session.attempt(units["ipo seed 1"]).state == "done"
    none = {**POCKET["evaluation"], "suite": []}
    alone = {"losses": ["ipo"], "seeds": [1]}
    compare(experiment("in-order", stages=["sft", "preference"], sft={"steps": 3}, evaluation=none, **alone))
    assert table("between")["ipo seed 1"] == table("in-order")["ipo seed 1"]


def test_one_unit_by_its_name(experiment, tmp_path):
    from typer.testing import CliRunner

    (tmp_path / "one.yaml").write_text(
        "name: one\nlosses: [dpo]\nseeds: [0]\nmodel: pocket\ndata: {source: pocket, options: {pairs: 96}}\n"
        "train: {steps: 4}\neval_at: [1.0]\nevaluation: {prompts: 8, samples: 2, suite: [repetition]}\n"
    )

    def run(*arguments):
        found = CliRunner().invoke(app, ["run-cell", "one.yaml", *arguments])
        return found.exit_code, found.output

    code, said = run("dpo seed 9")
    assert code == 2 and "dpo seed 9 is the key of no unit of one: name one of" in said
    code, said = run("dpo seed 0")
    assert code == 1 and "the reference cell of seed 0" in said
    assert run("reference seed 0")[0] == run("dpo seed 0")[0] == run("dpo seed 0")[0] == 0
    assert sorted(table("one")) == ["dpo seed 0", "reference seed 0"]
    tracker = Tracker("plo.db")
    [comparison] = tracker.comparisons()
    key = next(key for key, unit in tracker.planned_units(comparison.run_id).items() if unit["name"] == "sft seed 0")
    tracker.start_cell(comparison.run_id, key, "sft seed 0")  # this process has it from now on
    code, said = run(key[:12])
    assert code == 3 and f"sft seed 0 is being done by process {os.getpid()}" in said


def test_engines_by_name():
    assert isinstance(get_engine("local", workers=1), InProcess) and isinstance(get_engine("local", workers=3), Pool)
    with pytest.raises(EngineError, match="There is no engine 'dask': name one of local, ray"):
        get_engine("dask")
    with pytest.raises(EngineError, match="--address auto is for the engine ray"):
        get_engine("local", address="auto")


def test_a_cluster_of_two_nodes_one_of_which_is_lost(experiment, caplog):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'plo[ray]'")
    from ray.cluster_utils import Cluster

    assert not compare(experiment("one")).failed
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()

        def lose():
            runs = Tracker("plo.db", create=False)
            while sum(run.status == "FINISHED" for run in runs._search(kind="cell")) < 8 + 4:
                time.sleep(0.1)
            cluster.remove_node(node, allow_graceful=False)

        loser = threading.Thread(target=lose)
        loser.start()
        assert not compare(experiment("ray"), engine=get_engine("ray", address=cluster.address)).failed
        loser.join()
    finally:
        cluster.shutdown()
    assert table("one") == table("ray")
