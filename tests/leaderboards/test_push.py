"""`plo push`: what reaches the hub loads with peft, its card says what the records say, and hostile texts stay text."""

import base64
import json
import re
import shlex
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import huggingface_hub.constants
import pandas as pd
import pytest
import torch
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from plo.cli import app
from plo.evals import register_evaluation
from plo.experiment.matrix import compare
from plo.leaderboards import read
from plo.leaderboards.manifest import manifest
from plo.leaderboards.manifest_file import read_manifest
from plo.leaderboards.model_card import LossText, model_card
from plo.tracking import Tracker

FRONT = re.compile(r"---\n(.*?)\n---\n(.*)", re.DOTALL)


@pytest.fixture
def hub(monkeypatch):
    """A hub on this machine: {repository: {path: content}}, by the calls that huggingface_hub makes for a commit."""
    held = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            parts, answer = self.path.strip("/").split("/"), {}
            if self.path == "/api/repos/create":
                made = json.loads(body)
                held.setdefault(f"{made['organization']}/{made['name']}", {})
                answer = {"url": f"{address}/{made['organization']}/{made['name']}"}
            elif parts[4:5] == ["preupload"]:
                files = [file["path"] for file in json.loads(body)["files"]]
                answer = {"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in files]}
            elif parts[4:5] == ["commit"]:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        held["/".join(parts[2:4])][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                answer = {
                    "commitUrl": f"{address}/{parts[2]}/{parts[3]}/commit/{'0' * 40}",
                    "commitOid": "0" * 40,
                    "success": True,
                }
            self.answer(answer)

        def do_GET(self):
            self.answer({"sha": "0" * 40, "siblings": [], "id": "me/model"})

        def answer(self, content):
            data = json.dumps(content).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_local")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield held
    server.shutdown()


def run(*arguments):
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_what_is_pushed_loads_with_peft_and_its_card_says_what_the_records_say(tiny, tmp_path, hub):
    from peft import AutoPeftModelForCausalLM, PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    register_evaluation("characters", higher_is_better=True)(
        lambda samples: samples.text.str.len().to_frame("characters")
    )
    evaluation = {"prompts": 3, "samples": 2, "max_new_tokens": 4, "suite": ["characters"]}
    more = {
        "evaluation": evaluation,
        "primary": "characters",
        "baseline": "sft",
        "margin": 0.5,
        "train.lr": 0.05,
        "train.steps": 2,
    }
    assert not compare(tiny(losses=[{"ipo": {"beta": 0.3}}], eval_at=[1.0], **more)).failed
    out = tmp_path / "pushed"
    kept = run("tiny", "ipo(beta=0.3)", "--out", out)
    assert kept.exit_code == 0 and not hub, kept.output
    assert "others cannot load it" in kept.output

    # The folder loads with peft alone, and computes what the cell's own adapter computes on the base.
    loaded = AutoPeftModelForCausalLM.from_pretrained(out).float()
    ids = AutoTokenizer.from_pretrained(out)("Case 1: fine", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == AutoTokenizer.from_pretrained("tiny")("Case 1: fine")["input_ids"]
    (cell,) = (one for one in Tracker(create=False).cells() if one.name == "ipo(beta=0.3) seed 0")
    base = AutoModelForCausalLM.from_pretrained("tiny").float()
    plain = base(**ids).logits
    expected = PeftModel.from_pretrained(base, cell.folder)(**ids).logits
    with torch.no_grad():
        torch.testing.assert_close(loaded(**ids).logits, expected)
    assert (expected - plain).abs().max() > 1e-3, "the adapter does something"
    assert not list(out.glob("SHA256SUMS"))

    board = read(Tracker(create=False), "tiny")
    assert read_manifest(out / "plo-manifest.json") == json.loads(json.dumps(manifest(board)))
    front, text = FRONT.fullmatch((out / "README.md").read_text()).groups()
    front = yaml.safe_load(front)
    (row,) = (row for row in board.rows if row.loss == "ipo")
    gap, own = row.differences["characters"], row.values["characters"][cell.run_id]
    assert (
        f"**{row.verdict.capitalize()}**, compared with sft: {gap.mean:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]" in text
    )
    assert f"| {own:.3f} |" in text and "seed 0" in text
    assert front["library_name"] == "peft" and "base_model" not in front and "license" not in front
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == own and result["metrics"][0]["type"] == "characters"
    assert "arxiv.org/abs/2310.12036" in text and "| loss.beta | 0.3 |" in text and "| train.lr | 0.05 |" in text
    assert "plo reproduce plo-manifest.json" in text and "No licence was stated" in text

    # To the hub, with the base by the name it has there.
    refused = run("tiny", cell.run_id, "me/model")
    assert refused.exit_code == 2 and "--base ORG/NAME" in refused.output and not hub
    done = run("tiny", "ipo(beta=0.3) seed 0", "me/model", "--base", "org/base", "--license", "mit")
    assert done.exit_code == 0, done.output
    files = hub["me/model"]
    assert files["adapter_model.safetensors"] == (cell.folder / "adapter_model.safetensors").read_bytes()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
    front = yaml.safe_load(FRONT.fullmatch(files["README.md"].decode())[1])
    assert (front["base_model"], front["license"]) == ("org/base", "mit")
    assert {"plo-manifest.json", "tokenizer_config.json"} <= files.keys()

    wrong = run("tiny", "sft", "--out", tmp_path / "new", "--license", "mit\nbase_model: x")
    assert wrong.exit_code == 2 and "no identifier of a licence" in wrong.output
    again = run("tiny", "sft", "--out", out)
    assert again.exit_code == 2 and "has files already" in again.output
    unknown = run("tiny", "kto", "--out", tmp_path / "new")
    assert unknown.exit_code == 2 and "Trained: sft seed 0" in unknown.output.replace("\n", " ")
    shutil.rmtree(cell.folder)
    assert run("tiny", "ipo(beta=0.3)", "--out", tmp_path / "copy").exit_code == 0, "the store has a copy"
    before = dict(hub["me/model"])
    dry = run("tiny", "sft", "me/model", "--base", "org/base", "--dry-run")
    assert dry.exit_code == 0 and "## Train it again" in dry.output and hub["me/model"] == before


HOSTILE = [
    "<script>alert(1)</script>",
    "x\n---\nlicense: mit\n---\n# owned",
    "[a](javascript:alert(1)) ![i](http://evil/x.png)",
    "</td></tr> | a | b |\n| --- |",
    "```\n# out of the fence\n````\n<b>x</b>",
    "abc\u202e\u2066 \x1b[2J\x00",
    "{{7*7}} ${7*7} `rm -rf /`; $(touch /tmp/x) 'q",
    "!!python/object/apply:os.system [id]",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A board with a variant for each hostile text, which is also a parameter of its cell; settings, data and model have all."""
    tracker, every = Tracker(tmp_path_factory.mktemp("store") / "plo.db"), " ".join(HOSTILE)
    settings = {"primary": "reward", "baseline": "base", "plugins": [f"/home/me/{every.replace('/', '')}"]}
    settings |= {"model": {"name": every, "lora_targets": every}, "data": {"source": every}, "stages": [every]}
    parent = tracker.comparison(every, "key", settings)
    shared = {"plo.data": every, "plo.model": every, "plo.evaluation": every, "plo.seed": "0"}
    for place, name in enumerate(["base", *HOSTILE]):
        pairs = {
            "round": 1,
            "policy": name,
            "oracle": name,
            "rule": name,
            "k": 2,
            "temperature": 1,
            "prompts": 3,
            "pairs": 3,
        }
        own = {"plo.loss": name, "plo.variant": name, "plo.pairs": json.dumps(pairs)}
        cell = tracker.start_cell(parent, f"cell {place}", f"{name} 0", shared | own, {"loss.x": name})
        reward = [0.1 * place, 0.2, 0.3 * place]
        rows = {"prompt_id": [0, 1, 2], "sample": 0, "prompt": name, "text": name, "reward": reward}
        cell.table(pd.DataFrame(rows), "samples.json")
        cell.log({"reward": sum(reward) / 3}, 1)
        cell.finish()
    return read(tracker)


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_texts_stay_text_in_the_front_matter_and_the_markdown(number, hostile):
    board, text = hostile, HOSTILE[number]
    chosen = next(cell for cell in board.cells if cell.key == f"cell {number + 1}")
    losses = {word: LossText(text, text, text) for word in re.findall(r"\w+", text)}
    card = model_card(board, chosen, adapter=True, base=text, repo=text, losses=losses, license="mit")

    front, body = FRONT.fullmatch(card).groups()
    read_back = yaml.safe_load(front)
    assert read_back["license"] == "mit" and read_back["tags"][:2] == ["plo", "preference-optimization"]
    assert set(read_back) <= {"license", "library_name", "pipeline_tag", "tags", "model-index"}
    assert all("\n" not in tag and tag.isprintable() for tag in read_back["tags"])
    tokens = MarkdownIt("commonmark", {"html": True}).enable("table").parse(body)
    inline = [child for token in tokens for child in token.children or ()]
    headings = [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]
    assert headings[1:] == ["Result", "Loss", "Use", "Settings", "Train it again", "Licence"]
    assert not [t for t in (*tokens, *inline) if t.type in ("html_block", "html_inline", "image", "link_open")]
    assert all(c.isprintable() or c == "\n" for c in card)
    assert [token.type for token in tokens].count("table_open") == 2
    (shell,) = (token.content for token in tokens if token.type == "fence" and token.info == "sh")
    words = shlex.split(shell)
    assert len(words) == 5 and words[:4] == ["plo", "reproduce", "plo-manifest.json", "--plugin"]
    assert "trained on preference pairs made from" in body and "2 answers at temperature 1 to each of 3 prompts" in body
