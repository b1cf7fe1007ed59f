"""Notes under a table."""

import json
from types import SimpleNamespace

from plo.leaderboards.checks import stage_notes


def test_notes_say_which_seeds_share_a_stage():
    uses = {"dpo": ["own{}", "shared"], "sepo": ["own{}", "shared", "single"]}
    cells = [
        SimpleNamespace(name="", tags={"plo.variant": loss, "plo.seed": seed, "plo.stages": json.dumps(stages)})
        for loss, keys in uses.items()
        for seed in ("2", "10")
        for stages in [[key.format(seed) for key in keys if key != "single" or seed == "2"]]
    ]
    made = [("own10", "sft", 3), ("own2", "sft", 4), ("shared", "scores tis", 5), ("single", "oracle", 6)]
    stages = [
        {"key": key, "name": name, "status": "FINISHED", "metrics": {"seconds": seconds}, "run_id": f"run-{key}"}
        for key, name, seconds in [*made, ("other", "unused", 7)]
    ]
    assert stage_notes(cells, stages) == [
        "Stage sft ran for each of the seeds 2, 10 apart, for dpo, sepo: 7 s (run run-own1, run-own2).",
        "Stage scores tis ran once for seeds 2, 10 together, for dpo, sepo: 5 s (run run-shar).",
        "Stage oracle ran for seed 2, for sepo: 6 s (run run-sing).",
    ]
