"""A Slurm array script whose tasks share the work of a comparison, each as one of its drivers."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from plo.interrupt import START_AGAIN
from plo.paths import slug

WARNING_SECONDS = 120  # least time between the warning and the time limit
MOST_RESTARTS = 100
SPARE = 1.3  # times the estimated memory is asked for

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --time={time}
#SBATCH --signal=B:USR1@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%A_%a.log
#SBATCH --cpus-per-task={threads}
{resources}
# Each task is a driver of the same comparison: drivers of one store share its cells, and none is done twice.
# Slurm sends SIGUSR1 {warning} s before the time is over. The driver then stops at a checkpoint and exits with {again}, and the
# task is put into the queue again, where it goes on.
{command} &
driver=$!
trap 'signalled=yes; kill -USR1 "$driver" 2>/dev/null' USR1
trap 'signalled=yes; kill -TERM "$driver" 2>/dev/null' TERM
signalled=yes
while [ -n "$signalled" ]; do  # a signal ends `wait` while the driver still stops
    signalled=
    wait "$driver"
    status=$?
    [ "$status" -eq 127 ] || code=$status  # 127: it was waited for already
done
if [ "$code" -eq {again} ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    echo "plo was interrupted and goes on in the same task, which is queued again."
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


@dataclass(frozen=True)
class Resources:
    """Resources of each task of an array.

    Attributes:
        seconds: time limit.
        threads: processor cores.
        memory: peak memory in GB of the main memory; None: not known, and Slurm's default is asked for.
        gpu: whether each task has a GPU.
        longest: seconds of the longest work that a signal waits for, such as a training step.
    """

    seconds: float
    threads: int
    memory: float | None = None
    gpu: bool = False
    longest: float = 0.0


def slurm_script(name: str, command: Sequence[str], tasks: int, resources: Resources) -> str:
    """Return the script of an array of `tasks` tasks, each of which runs the command, to be given to `sbatch`.

    Args:
        name: name of the experiment.
        command: the command of a driver, such as ["plo", "compare", "experiment.yaml"].
    """
    lines = [f"#SBATCH --mem={_gigabytes(resources.memory)}G"] if resources.memory is not None else []
    lines += ["#SBATCH --gres=gpu:1"] if resources.gpu else []
    return SCRIPT.format(
        name=slug(f"plo-{name}"),
        last=tasks - 1,
        time=_time(resources.seconds),
        warning=max(WARNING_SECONDS, round(3 * resources.longest)),
        threads=resources.threads,
        resources="\n".join(lines) + ("\n" if lines else ""),
        command=shlex.join(command),
        again=START_AGAIN,
        restarts=MOST_RESTARTS,
    )


def _gigabytes(memory: float) -> int:
    return max(1, -(-int(memory * SPARE * 1000) // 1000))


def _time(seconds: float) -> str:
    """Write seconds as Slurm reads them, "1-02:03:00", rounded up to whole minutes."""
    minutes = max(5, -(-int(seconds) // 60))
    days, rest = divmod(minutes, 24 * 60)
    return f"{days}-{rest // 60:02}:{rest % 60:02}:00"
