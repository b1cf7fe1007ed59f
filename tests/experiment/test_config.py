"""Experiments from YAML and the command line, and errors that name place and remedy."""

import pytest

from plo.config import ConfigError, Experiment, load_experiment


def write(tmp_path, text):
    path = tmp_path / "experiment.yaml"
    path.write_text(text)
    return path


def test_a_file_with_short_forms_and_overrides(tmp_path):
    path = write(tmp_path, "losses: [dpo, {bpo: {lam: 0.5}}]\ndata: hh\nmodel: embedded\ntrain: {lr: 1.0e-4}\n")
    experiment = load_experiment(path, {"train.lr": "3e-4", "data.limit": 10, "seeds": [7]})
    assert experiment.losses == ("dpo", {"bpo": {"lam": 0.5}})
    assert (experiment.data.source, experiment.data.limit, experiment.model.name) == ("hh", 10, "embedded")
    assert (experiment.train.lr, experiment.seeds) == (3e-4, (7,))


def test_a_short_form_over_a_file_keeps_the_files_other_settings(tmp_path):
    path = write(
        tmp_path, "losses: [dpo]\nmodel: {peft: full, attention: eager}\ndata: {source: hh, limit: 500}\ntrain:\n"
    )
    experiment = load_experiment(path, {"model": "/x", "data": "tldr", "train.lr": 1e-5, "seeds": 3})
    assert (experiment.model.name, experiment.model.peft, experiment.model.attention) == ("/x", "full", "eager")
    assert (experiment.data.source, experiment.data.limit) == ("tldr", 500)
    assert (experiment.train.lr, experiment.seeds) == (1e-5, (3,))


def test_losses_may_be_a_mapping(tmp_path):
    path = write(tmp_path, "losses:\n  dpo:\n  bpo: {lam: 0.5}\n")
    assert load_experiment(path).losses == ({"dpo": None}, {"bpo": {"lam": 0.5}})


def test_the_end_of_training_is_always_evaluated():
    assert load_experiment(None, {"losses": ["dpo"], "eval_at": [0.5, 0.25]}).points == (0.25, 0.5, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("losses: [dpo]\ntrain: {learning_rate: 1}\n", r"train\.learning_rate: there is no such setting"),
        ("losses: [dpo]\ntrain: {batchsize: 1}\n", r"did you mean train\.batch_size"),
        ("seeds: [0]\n", "losses: is missing"),
        ("losses: [dpo]\ntrain: {lr: -1}\n", r"train\.lr: .*greater than 0.*got -1"),
        ("losses: [dpo]\neval_at: [2]\n", r"eval_at\.0: .*less than or equal to 1"),
        ("losses: [dpo\n", r"experiment\.yaml is not YAML: line 2: expected ',' or ']', but got '<stream end>'\.$"),
        ("losses: [dpo]\ntrain:\n\tlr: 1\n", r"line 3: found character '\\t'.*; indent with spaces\.$"),
        ("losses: [dpo]\ntrain: lr=1\n", r"  train: write settings by name, as in {setting: value} \(got 'lr=1'\)$"),
        ("losses: [dpo]\nout: [a]\n", r"  out: write the path of a file or folder \(got \['a'\]\)$"),
        ("losses: [dpo]\ntuning: {search: {dpo: {beta: 1}}}\n", r"search\.dpo\.beta: write a list.* \(got 1\)"),
        (
            "losses: [dpo]\ndata: {origin: iterated(x)}\n",
            r"  data\.origin: data='iterated\(x\)' is no origin of training pairs",
        ),
        ("losses: [dpo]\ndata: {flip: 1.5}\n", r"  data\.flip: flip=1\.5 is no share of turned labels"),
        ("losses: [dpo]\ndata: {columns: [a]}\n", r"data\.columns: write settings by name"),
        ("losses: [dpo]\nseeds: {looks: []}\n", r"seeds\.looks: write increasing numbers .*\(got \[\]\)$"),
        ("losses: [dpo]\nseeds: {looks: [[3]]}\n", r"seeds\.looks: write increasing numbers"),
        ("losses: [dpo]\nseeds: {looks: [5, 3]}\n", r"looks: write increasing numbers of seeds, such as \[3, 5, 8\]"),
        ("losses: [dpo]\ntrain: {schedule: cosin}\n", r"train\.schedule: .*similar ones: cosine"),
        ("losses: [dpo]\ntrain: {optimizer: adamm}\n", r"train\.optimizer: .*similar ones: .*adam"),
        ("losses: [dpo]\ntrain: {epochs: .inf}\n", r"train\.epochs: .*finite"),
        ("losses: [dpo]\ntrain: {micro_batch_size: 3}\n", "batch_size=8 is not a multiple of micro_batch_size=3"),
        ("losses: [dpo]\nseeds: [0, 0]\n", "seeds: .*a seed is listed twice"),
        ("- dpo\n", "must hold a mapping"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_experiment(write(tmp_path, text))
    assert "experiment.yaml" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load_experiment(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("settings", "lr"),
    [
        ({}, 2e-4),
        ({"model.peft": "full"}, 1e-5),
        ({"model.peft": "full", "train.lr": 3e-4}, 3e-4),
        ({"train.lr": None, "model": {"peft": "full"}}, 1e-5),
    ],
)
def test_the_learning_rate_is_by_kind_of_fine_tuning_and_recorded_as_a_number(settings, lr):
    from plo.experiment.keys import Cell
    from plo.experiment.runner import _params
    from plo.scorers import get_variant

    experiment = load_experiment(None, {"losses": ["dpo"], **settings})
    assert experiment.train.lr == experiment.model_dump(mode="json")["train"]["lr"] == lr
    assert float(_params(experiment, Cell(get_variant("dpo"), 0, "key"))["lr"]) == lr
    again = load_experiment(None, experiment.model_dump(mode="json"))  # as a recorded configuration is read back
    assert again.train.lr == lr


def test_a_grid_stands_for_every_combination_of_its_values():
    losses = Experiment(
        losses=["ipo", {"dpo": {"label_smoothing": 0.1, "grid": {"beta": [0.1, 0.2], "train.lr": [1e-5, 1e-4]}}}]
    ).losses
    assert losses == (
        "ipo",
        *(
            {"dpo": {"label_smoothing": 0.1, "beta": beta, "train": {"lr": lr}}}
            for beta in (0.1, 0.2)
            for lr in (1e-5, 1e-4)
        ),
    )
    with pytest.raises(ConfigError, match=r"the grid of dpo must list values by name, as in {beta: \[0\.05, 0\.1\]"):
        Experiment.of({"losses": {"dpo": {"grid": {"beta": 0.1}}}}, "The experiment")
