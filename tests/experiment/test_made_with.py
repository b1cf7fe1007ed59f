"""What a comparison records of the circumstances in which it ran, once for all its runs."""

import json
from importlib.metadata import version

import torch

from plo.config import load_experiment
from plo.experiment.matrix import compare
from plo.leaderboards import read
from plo.leaderboards.manifest import manifest
from plo.registry import load_plugin
from plo.tracking import Tracker

LOSS = """from plo import register_loss


@register_loss("mine", needs=())
def mine(pairs, *, beta: float = 0.1):
    return (pairs.rejected.logps - pairs.chosen.logps).sum(-1) * beta
"""


def test_a_comparison_records_packages_hardware_data_and_the_files_that_it_was_given(tiny, tmp_path):
    (tmp_path / "mine.py").write_text(LOSS)
    settings = tiny(losses=["mine"], plugins=["mine.py"], **{"model.dtype": "float32"}).model_dump(mode="json")
    text = f"# why this comparison\n{json.dumps(settings)}\n"
    (tmp_path / "e.yaml").write_text(text)
    experiment = load_experiment(tmp_path / "e.yaml")
    load_plugin(tmp_path / "mine.py")
    compare(experiment)

    tracker = Tracker(create=False)
    found = manifest(read(tracker, "tiny"))
    ((digest, made),) = found["made_with"].items()
    assert {cell["made_with"] for cell in found["cells"]} == {digest}  # once, for all of them
    assert made["packages"]["torch"] == version("torch") and made["packages"]["pydantic"] == version("pydantic")
    assert made["hardware"]["threads"] == torch.get_num_threads() and made["hardware"]["capability"]
    assert (
        made["engine"] == "local" and made["model"]["dtype"] == "torch.float32" and len(made["model"]["weights"]) == 64
    )
    assert made["data"]["digest"] == found["cells"][0]["data"] and len(made["data"]["tokens"]) == 64
    assert found["comparisons"][0]["experiment_file"] == text.replace(f"{tmp_path}/", "<local>/")
    codes = {cell["variant"]: cell["code"] for cell in found["cells"]}
    assert len({codes["mine"], codes["sft"]}) == 2 and codes["reference"] == "not recorded"
    (copy,) = tmp_path.glob("mlartifacts/*/artifacts/plugin-*.py")
    assert copy.read_text() == LOSS
