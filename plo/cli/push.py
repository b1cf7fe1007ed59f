"""The command `push`, which publishes a trained model on the hub with a card made of its records."""

import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plo.cli.parameters import Plugins, Store
from plo.cli.shared import console, load_plugins, log, silence_libraries
from plo.terminal import say

if TYPE_CHECKING:
    from plo.leaderboards.model_card import LossText
    from plo.tracking import Comparison, RecordedCell


def push(
    comparison: Annotated[
        str, typer.Argument(metavar="COMPARISON", help="Name of a comparison or the beginning of its key.")
    ],
    cell: Annotated[
        str,
        typer.Argument(metavar="CELL", help='Trained cell: a variant, which means its first seed, or "dpo seed 1".'),
    ],
    repo: Annotated[
        str | None, typer.Argument(metavar="[REPO]", help="Repository on the hub, such as me/my-model. Default: none.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="New folder to write the files to, and to keep.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card and list the files, and upload nothing.")
    ] = False,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    license: Annotated[
        str | None, typer.Option(help="Licence of the weights, such as apache-2.0. Default: none is stated.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Hub name of the base model, where training used a folder of this machine.")
    ] = None,
    baseline: Annotated[
        str | None, typer.Option(help="Variant that the card compares with. Default: that of the experiment.")
    ] = None,
    plugin: Plugins = [],  # noqa: B006
    store: Store = None,
):
    """Publish a trained model on the hub, with a card that states its loss, settings and data, and the verdict on it.

    Without REPO, or with --dry-run, nothing is uploaded. The folder of --out loads with transformers or peft.

    Examples:
        plo push first dpo --out my-dpo
        plo push first "dpo seed 1" org/my-dpo --license apache-2.0
    """
    from plo.extras import require

    require("train", "plo push")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from plo.leaderboards import read
    from plo.leaderboards.manifest import manifest
    from plo.leaderboards.model_card import model_card, on_hub
    from plo.leaderboards.model_folder import PushError, base_of, is_adapter, write_model
    from plo.tracking import Tracker

    uploads = repo is not None and not dry_run
    if repo is None and out is None and not dry_run:
        raise PushError("Nowhere to push to: name a repository, such as me/my-model, or a folder, --out FOLDER.")
    try:
        for name in filter(None, (repo, base)):
            validate_repo_id(name)
    except HFValidationError as error:
        raise PushError(f"{repo or base} is no name of a repository on the hub: {error}") from None
    if license is not None and not re.fullmatch(r"[\w.+-]+", license):
        raise PushError(f"{license!r} is no identifier of a licence: write one such as apache-2.0, mit or other.")
    load_plugins(plugin)
    silence_libraries()
    board = read(Tracker(store, create=False), comparison, baseline)
    if len(board.recorded) > 1:
        known = ", ".join(f"{one.name} ({one.key[:12]})" for one in board.recorded)
        raise PushError(f"{comparison} may be any of: {known}. Give the beginning of a key.")
    recorded = board.recorded[0]
    chosen = _cell(board.cells, cell, recorded)
    trained_from = str(recorded.config()["model"]["name"])
    with tempfile.TemporaryDirectory() as aside:
        model = _whole_if_on_an_adapter(chosen.model(), Path(aside) / "merged")
        needed = base or base_of(model, trained_from)
        if not on_hub(needed):
            why = f"{needed} is on this machine alone, and {chosen.name} starts from it"
            if uploads:
                raise PushError(f"{why}: name the base model on the hub, --base ORG/NAME, if its weights are the same.")
            log.warning("%s: others cannot load it. --base ORG/NAME names the base model on the hub.", why)
        about = {"adapter": is_adapter(model), "base": needed, "license": license, "losses": _losses()}
        folder = out or Path(aside) / "model"
        card = model_card(board, chosen, repo=repo or str(folder.name), **about)
        files = write_model(model, folder, card, manifest(board), needed)
        files += _tokenizer(trained_from, folder)
        if dry_run:
            say(console, card)
        for file in sorted(set(files)):
            log.info("%s, %s bytes", file.relative_to(folder), f"{file.stat().st_size:,}")
        if out is not None:
            log.info("Written to %s.", out)
        if uploads and repo is not None:
            address = _upload(folder, repo, private, f"{chosen.name} of {recorded.name}, by plo push")
            log.info("Uploaded: %s", address)


def _cell(cells: "Iterable[RecordedCell]", name: str, comparison: "Comparison") -> "RecordedCell":
    """Return the finished cell of a name or run id, or the first one of a variant."""
    from plo.leaderboards.model_folder import PushError

    trained = [one for one in cells if one.status == "FINISHED" and one.folder is not None]
    trained.sort(key=lambda one: int(one.tags["plo.seed"]))
    for one in trained:
        if name in (one.name, one.run_id, one.tags["plo.variant"]):
            return one
    known = ", ".join(one.name for one in trained) or "none"
    raise PushError(f"{comparison.name} has no trained cell {name!r}. Trained: {known}.")


def _losses() -> "dict[str, LossText]":
    """Return what to say of each registered loss and recipe."""
    from plo.docstring import read_docstring
    from plo.leaderboards.model_card import LossText
    from plo.losses import LOSSES
    from plo.scorers import RECIPES

    texts = {}
    for registry in (LOSSES, RECIPES):
        for entry in registry:
            found, paper = read_docstring(entry.load()), entry.facts.paper
            link = f"https://arxiv.org/abs/{paper}" if paper[:1].isdigit() else paper
            texts[entry.name] = LossText(found.summary, found.formula, link)
    return texts


def _whole_if_on_an_adapter(model: Path, aside: Path) -> Path:
    """Return the folder of a model; of an adapter that was trained on top of another one, `aside` with both merged into their base.

    peft would load such an adapter in the place of the one below it.
    """
    from transformers import AutoModelForCausalLM

    from plo.backbone.adapters import adapter_folder
    from plo.backbone.pretrained import pretrained
    from plo.leaderboards.model_folder import base_of, is_adapter

    if not is_adapter(model) or adapter_folder(base_of(model, "")) is None:
        return model
    pretrained(AutoModelForCausalLM, str(model), "auto")[0].save_pretrained(aside)
    return aside


def _tokenizer(name: str, folder: Path) -> list[Path]:
    """Write the tokenizer that the model was trained with into a folder, and return its files."""
    from plo.backbone.pretrained import pretrained_tokenizer

    before = set(folder.iterdir())
    try:
        pretrained_tokenizer(name)[0].save_pretrained(folder)
    except (OSError, ValueError) as error:
        log.warning("The tokenizer of %s cannot be read, and is left out: %s", name, error)
    return [path for path in folder.iterdir() if path not in before]


def _upload(folder: Path, repo: str, private: bool, message: str) -> Any:
    """Upload a folder to a repository, which is made if it is missing, and return the address."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    from plo.errors import one_line
    from plo.leaderboards.model_folder import PushError

    try:
        api = HfApi()
        api.create_repo(repo, private=private or None, exist_ok=True)
        return api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message).repo_url
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        raise PushError(
            f"{repo} cannot be written on the hub: {one_line(error)}. Log in with `hf auth login`, or unset HF_HUB_OFFLINE, "
            f"and run the command again; --out FOLDER keeps the files."
        ) from error
