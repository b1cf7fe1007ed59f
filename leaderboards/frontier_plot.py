"""Plot reward against KL, from the frame of `plo.leaderboards.frontier`."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from plo.leaderboards.checks import LeaderboardError
from plo.leaderboards.frontier import frontier_points

MARKERS = "os^Dv<>Ph"


def plot(frame: pd.DataFrame, path: str | Path) -> Path:
    """Draw `frontier`'s frame: a colour per loss, a marker per beta, a line along training; filled points are on a frontier.

    KL has a square-root scale, on which reward at first grows about linearly (Gao et al.). Bars: 1.96 standard errors of
    KL, 95% interval of reward.

    Args:
        frame: the result of `frontier`.
        path: a file that ends in .svg, .png or .pdf; its folder is created if necessary.

    Returns:
        The path of the picture.

    Raises:
        LeaderboardError: matplotlib is not installed.
    """
    try:
        from matplotlib import colormaps
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LeaderboardError(f"The picture needs matplotlib ({error}): pip install matplotlib.") from None
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    losses = frame["loss"].unique()
    palette = colormaps["tab10"](range(10)) if len(losses) <= 10 else colormaps["turbo"](np.linspace(0, 1, len(losses)))
    colours: dict[str, Any] = dict(zip(losses, palette, strict=False)) | {"reference": "black"}
    betas = sorted(frame["beta"].dropna().unique())
    markers = {beta: MARKERS[i % len(MARKERS)] for i, beta in enumerate(betas)}
    for (loss, _), line in frame.groupby(["loss", "variant"], sort=False):
        colour, marker = colours[str(loss)], markers.get(line["beta"].iloc[0], "*")
        axes.plot(line["kl"], line["reward"], color=colour, linewidth=0.8, alpha=0.6, zorder=1)
        bars = {
            "xerr": 1.96 * line["kl_se"],
            "yerr": [line["reward"] - line["reward_low"], line["reward_high"] - line["reward"]],
        }
        axes.errorbar(
            line["kl"], line["reward"], fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.35, zorder=1, **bars
        )
        face = [colour if on else "white" for on in line["on_frontier"]]
        look: dict[str, Any] = {
            "marker": marker,
            "facecolors": face,
            "edgecolors": colour,
            "zorder": 3,
            "clip_on": False,
        }
        axes.scatter(line["kl"], line["reward"], s=25 + 45 * line["share"], **look)
    for loss, best in frontier_points(frame).sort_values("kl").groupby("loss"):
        axes.plot(best["kl"], best["reward"], color=colours[str(loss)], linewidth=5, alpha=0.2, zorder=0)
    axes.set_xscale("function", functions=(lambda kl: np.sqrt(np.clip(kl, 0, None)), np.square))
    axes.set_xlim(left=0)
    axes.set_xlabel("KL(policy || reference), nats a continuation (square-root scale)")
    axes.set_ylabel("reward")
    axes.grid(alpha=0.25)
    _legend(figure, {loss: colours[loss] for loss in losses}, markers)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _legend(figure: Any, colours: dict[str, Any], markers: dict[float, str]) -> None:
    from matplotlib.lines import Line2D

    def sample(label: str, **look: Any) -> Line2D:
        return Line2D([], [], label=label, **look)

    known = [sample(loss, color=colour, linewidth=4) for loss, colour in colours.items()]
    shape: dict[str, Any] = {"linestyle": "", "color": "grey"}
    known += [sample(f"beta {beta:g}", marker=marker, **shape) for beta, marker in markers.items()]
    known += [
        sample("no beta", marker="*", **shape), sample("dominated", marker="o", fillstyle="none", **shape),
        sample("early in training", marker=".", **shape), sample("frontier", color="grey", linewidth=5, alpha=0.3),
    ]  # fmt: skip
    figure.legend(handles=known, loc="outside right upper", frameon=False)
