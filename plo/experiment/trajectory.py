"""Texts that recorded cells drew at their evaluation points, read back for evaluations along training."""

from plo.experiment.cell import TEXTS
from plo.experiment.workbench import Workbench
from plo.subjects.subject import Trajectory
from plo.tracking import RecordedCell, Tracker


def read_trajectory(bench: Workbench, tracker: Tracker, parent: str, cell: RecordedCell) -> Trajectory:
    """Return what a cell drew during its training; of cells that recorded one point, or of the reference, the last point alone.

    Args:
        parent: run id of the cell's comparison, which has the reference's samples too.
    """
    last, notes = cell.table("samples.json"), ()
    if cell.has_table(TEXTS):
        prompts = last.drop_duplicates("prompt_id").set_index("prompt_id")["prompt"]
        samples = cell.table(TEXTS).assign(prompt=lambda frame: frame["prompt_id"].map(prompts))
    else:
        steps = max(cell.history("kl"), default=0)
        samples = last.assign(share=1.0, step=steps)
        if steps and len(cell.history("kl")) > 1:
            notes = (f"{cell.name} was recorded by an earlier plo, without the texts of the points before its end.",)
    run = tracker.finished_run(parent, "cell", "reference", int(cell.tags["plo.seed"]))
    theirs = tracker.table(run, "samples.json") if run is not None else last.iloc[:0]
    places = zip(theirs["prompt_id"], theirs["sample"], strict=True)
    rows = {pair.prompt: pair.row for pair in reversed(bench.data.eval) if pair.row is not None}
    reference = dict(zip(places, theirs["text"], strict=True))
    return Trajectory(samples, reference, rows, notes)
