"""Files of suites: local copies from any folder on the way, and the hub's paths without a network."""

import json
import sys
from types import SimpleNamespace

import datasets
import huggingface_hub
import pytest
from scripted import Scripted
from stub import StubSubject
from test_arena_hard import BASELINE, clone, lines  # noqa: F401

from plo.data import DataError
from plo.evals import EvaluationError, get_model_evaluation
from plo.evals.arena_hard import _file as arena_file
from plo.evals.files import find_file, read_fields
from plo.evals.judges import JudgeSession
from plo.evals.mt_bench import _file as mt_file


def test_a_folder_on_the_way_will_do(tmp_path):
    lines(tmp_path / "data/bench/sub/x.jsonl", [{"a": 1}])
    for folder in (".", "data", "data/bench", "data/bench/sub"):
        assert find_file(
            tmp_path / folder, "data/bench/sub/x.jsonl"
        ) == tmp_path / folder / "data/bench/sub/x.jsonl" or (
            find_file(tmp_path / folder, "data/bench/sub/x.jsonl").samefile(tmp_path / "data/bench/sub/x.jsonl")
        )
    assert find_file(tmp_path, "data/bench/sub/y.jsonl") is None


def test_the_hub_is_asked_for_the_official_files(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *names, **kind: asked.append((*names, kind)) or tmp_path / "x"
    )
    arena_file(None, f"model_answer/{BASELINE}.jsonl")
    mt_file(None, "question.jsonl")
    assert asked == [
        (
            "lmarena-ai/arena-hard-auto",
            f"data/arena-hard-v2.0/model_answer/{BASELINE}.jsonl",
            {"repo_type": "dataset"},
        ),
        ("lmsys/mt-bench", "data/mt_bench/question.jsonl", {"repo_type": "space"}),
    ]


def test_offline_the_remedy_is_a_folder():
    with pytest.raises(
        EvaluationError, match=r"space lmsys/mt-bench cannot be downloaded .* mt_bench\(data=FOLDER\)\.$"
    ):
        mt_file(None, "question.jsonl")


def test_reward_bench_reads_the_hubs_test_split(monkeypatch):
    row = {"id": "0", "prompt": "p", "subset": "Math", "chosen": ["a"], "rejected": ["b", "c", "d"], "num_correct": 1}
    asked = []

    def load_dataset(name, **options):
        asked.append((name, options))
        return datasets.Dataset.from_list([row])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = get_model_evaluation("reward_bench")(StubSubject(None, margin=lambda pair: 1.0))
    assert asked == [("allenai/reward-bench-2", {"split": "test"})] and found.metrics["accuracy_math"] == 1


def test_a_pointer_of_git_lfs_is_no_data(tmp_path):
    file = tmp_path / "x.jsonl"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(DataError, match=r"x\.jsonl:1"):
        read_fields(file, "uid")
    file.write_text(json.dumps({"uid": "a"}) + "\n")
    with pytest.raises(EvaluationError, match=r"x\.jsonl:1: no prompt\. A row has uid, prompt"):
        read_fields(file, "uid", "prompt")


def test_official_lengths_are_tokens(clone, monkeypatch):  # noqa: F811
    """A stand-in for tiktoken, whose vocabulary is downloaded; without it the remedy is named before anything is drawn."""
    subject, options = StubSubject(lambda *_: "three words here", chat=True), {"data": clone, "official": True}
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(EvaluationError, match="leave out official=true"):
        get_model_evaluation("arena_hard", options)(subject, JudgeSession(Scripted(lambda q: 0.5)))
    assert not subject.calls
    encoder = SimpleNamespace(encode=lambda text, disallowed_special: text.split())
    monkeypatch.setitem(sys.modules, "tiktoken", SimpleNamespace(encoding_for_model=lambda name: encoder))
    found = get_model_evaluation("arena_hard", options)(subject, JudgeSession(Scripted(lambda q: 0.5)))
    assert found.metrics["length"] == 3 and "lengths in tokens" in found.notes[0]
    answer = json.loads(found.files["arena_hard_answers.jsonl"].splitlines()[0])
    assert answer["metadata"]["token_len"] == 3 and list(answer["metadata"])[1] == "header_count"
