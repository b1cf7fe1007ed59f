"""Tiny models and pairs that every test may ask for."""

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 61


_file = None  # of the last test


def pytest_runtest_setup(item):
    """Keep imports and MLflow's open stores out of later garbage collections: each training asks for some, of up to a second each."""
    global _file
    if item.path != _file:
        gc.collect()
        gc.freeze()
        _file = item.path


@pytest.fixture(autouse=True)
def _threads():
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # two processes share the cores


@pytest.fixture(autouse=True)
def _registries():
    """What a test registers is gone after it."""
    from plo.backbone.token_statistics import STATISTICS
    from plo.data import SOURCES
    from plo.data.completions import PROVIDERS
    from plo.evals import EVALUATIONS
    from plo.evals.judges import JUDGES
    from plo.losses import GENERATORS, LOSSES
    from plo.scorers import RECIPES, SCORERS

    registries = (LOSSES, GENERATORS, SCORERS, RECIPES, STATISTICS, SOURCES, PROVIDERS, EVALUATIONS, JUDGES)
    before = [(registry, dict(registry._entries), dict(registry._aliases)) for registry in registries]
    yield
    for registry, entries, aliases in before:
        registry._entries, registry._aliases = entries, aliases


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data sets; tests that need it skip without it."""
    folder = Path(os.environ.get("PLO_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder} (PLO_DATA names another folder)")
    return folder


@pytest.fixture(scope="session")
def tokenize_row():
    """Tokenise one row as training does; BadRow if it would be dropped."""
    from plo.data.errors import BadRow
    from plo.data.tokenize import tokenize_rows

    def make(row, tokenizer, max_length: int = 512, truncation: str = "keep_start"):
        ((_, pair, _),) = tokenize_rows([row], tokenizer, max_length, truncation)
        if isinstance(pair, str):
            raise BadRow(pair)
        return pair

    return make


@pytest.fixture(scope="session")
def tiny_llama():
    """A factory of tiny random Llamas; the same seed gives the same weights."""

    def make(seed: int = 0, dtype: torch.dtype = torch.float64, **changes) -> LlamaForCausalLM:
        torch.manual_seed(seed)
        sizes = dict(vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2)
        heads = dict(num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128)
        config = LlamaConfig(**{**sizes, **heads, "initializer_range": 0.3, "eos_token_id": 1, **changes})
        return LlamaForCausalLM(config).to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def tiny_pairs():
    """A factory of pairs of random token ids of uneven lengths."""
    from plo.data import Pair

    def make(count: int, seed: int = 0, longest: int = 9) -> list[Pair]:
        generator = torch.Generator().manual_seed(seed)

        def ids(shortest: int = 1) -> tuple[int, ...]:
            length = int(torch.randint(shortest, longest + 1, (1,), generator=generator))
            return tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())

        return [
            Pair(
                prompt_ids=ids(),
                chosen_ids=ids(),
                rejected_ids=ids(),
                prompt=f"prompt {i}",
                where=f"row {i}",
                columns={"margin": float(i)},
            )
            for i in range(count)
        ]

    return make


@pytest.fixture(params=["flipped", "cut"])
def harm(request):
    """A function that flips a bit in a file, or cuts it short, as a disk or a copy does. A test that asks for it runs twice."""

    def do(path: Path) -> None:
        content = bytearray(path.read_bytes())
        path.unlink()  # what was read of it may be mapped
        if request.param == "flipped":
            content[-3] ^= 1
        path.write_bytes(content if request.param == "flipped" else content[: -len(content) // 3])

    return do


@pytest.fixture
def tiny(tiny_llama, tmp_path, monkeypatch):
    """A factory of experiments on a tiny random Llama and 24 pairs, in a folder and a cache of their own."""
    from transformers import AutoTokenizer

    from plo.config import load_experiment

    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(_embedded(monkeypatch))
    model = tmp_path / "tiny"
    tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).float().save_pretrained(model)
    tokenizer.save_pretrained(model)
    rows = [
        {"prompt": f"Case {i}:", "chosen": " fine" * (1 + i % 3), "rejected": " bad" * (1 + i % 2) + "!"}
        for i in range(24)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))

    def make(**changes):
        settings = {
            "name": "tiny",
            "losses": ["dpo"],
            "seeds": [0],
            "model": {"name": str(model)},
            "data": {"source": str(tmp_path / "pairs.jsonl"), "eval_fraction": 0.3},
            "train.batch_size": 4,
            "train.lr": 1e-3,
            "eval_at": [0.5],
            "evaluation": {"prompts": 3, "samples": 2, "max_new_tokens": 4},
        }
        return load_experiment(None, settings | changes)

    return make


def _embedded(monkeypatch):
    """The embedded model's folder in the user's own cache: making it again for every test would take 20 s."""
    from plo.embedded import embedded_model

    with monkeypatch.context() as context:
        context.delenv("PLO_HOME")
        return embedded_model()


@pytest.fixture(scope="session")
def start_server():
    """A function that starts an MLflow server on a database, and returns its address once it answers."""
    with contextlib.ExitStack() as stack:
        yield lambda database, folder: stack.enter_context(_server(database, folder))


@pytest.fixture(scope="session")
def postgres():
    """The address of a PostgreSQL database. Its server refuses to run as root, and is then another user's."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda folder: float(folder.parent.name))
    found = shutil.which("initdb")
    if not programs and not found:
        pytest.skip("no PostgreSQL here (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="no driver of PostgreSQL here (pip install psycopg[binary])")
    bin, folder, port = programs[-1] if programs else Path(found).parent, tempfile.mkdtemp(prefix="plo-"), _free_port()
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        shutil.chown(folder, user)
    data, quiet = f"{folder}/data", {"user": user, "stdout": subprocess.DEVNULL, "cwd": folder}
    subprocess.run([bin / "initdb", "-D", data, "-A", "trust", "-U", "plo", "--no-sync"], check=True, **quiet)
    settings = ["-F", "-h", "127.0.0.1", "-p", str(port), "-k", folder]
    process = subprocess.Popen([bin / "postgres", "-D", data, *settings], stderr=subprocess.DEVNULL, **quiet)
    try:
        while subprocess.run([bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]).returncode:
            assert process.poll() is None
            time.sleep(0.1)
        yield f"postgresql://plo@127.0.0.1:{port}/postgres"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["a file", "a server", "a server on PostgreSQL"])
def store(request, tmp_path, monkeypatch):
    """A store to record in: a test that asks for it runs with each kind. The experiment is the test's own."""
    monkeypatch.setenv("PLO_HOME", str(tmp_path / "home"))
    if request.param == "a file":
        return str(tmp_path / "plo.db")
    return request.getfixturevalue("sqlite_server" if request.param == "a server" else "postgres_server")


@pytest.fixture(scope="session")
def sqlite_server(start_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    return start_server(f"sqlite:///{folder}/server.db", folder)


@pytest.fixture(scope="session")
def postgres_server(start_server, postgres, tmp_path_factory):
    return start_server(postgres, tmp_path_factory.mktemp("postgres"))


@contextlib.contextmanager
def _server(database, folder):
    port = _free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    where = ["--backend-store-uri", database, "--artifacts-destination", str(folder / "files")]
    with (folder / "log.txt").open("w") as said:
        process = subprocess.Popen([*command, *where], stdout=said, stderr=said, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # it has processes of its own
        process.wait()


def _free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
