"""Plot runs in one figure: losses against samples and against time, θ and depth, learning rate.

python -m bert_pld.plot runs/baseline runs/pld --output comparison.png
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bert_pld.cli import check_figure_file, make_parser
from bert_pld.cli import run as run_command
from bert_pld.files import CONFIG, METRICS, printable
from bert_pld.training.records import read_metrics

# Okabe and Ito's palette, which colour-blind readers can distinguish, without its yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LINE_STYLES = ("-", "--", ":", "-.")
_SMOOTHING_SHARE = 0.02
"""Time constant of the running means, as a share of a run's logging steps."""


@dataclasses.dataclass(frozen=True)
class RunCurves:
    """One run's metrics, in the order of its steps."""

    label: str
    training: list[dict[str, Any]]
    """Records of logging steps."""
    evaluations: list[dict[str, Any]]
    num_layers: int | None
    """Number of blocks from the run's config.json; None without one."""

    def column(self, key: str, *, of: str = "training") -> list[float]:
        """Return a key's values over the records of `training` or `evaluations`; NaN where it is missing or null."""
        values = [record.get(key) for record in getattr(self, of)]
        return [math.nan if value is None else float(value) for value in values]


def read_run(run_dir: Path, label: str | None = None) -> RunCurves:
    """Read a run's `metrics.jsonl` and `config.json`; raise a ValueError if they are missing or damaged."""
    path = run_dir / METRICS
    try:
        training, evaluations = read_metrics(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); give a run's folder") from error
    if not training and not evaluations:
        raise ValueError(f"{path}: holds no metrics yet")
    return RunCurves(printable(label or run_dir.resolve().name), training, evaluations, _num_layers(run_dir / CONFIG))


def _num_layers(path: Path) -> int | None:
    try:
        return int(json.loads(path.read_text(encoding="utf-8"))["model"]["num_layers"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a run's configuration ({error!r})") from error


def smooth(values: Sequence[float], time_constant: float) -> list[float]:
    """Return the exponential running mean, unbiased at the start; values that are not finite are skipped.

    A value's weight falls to 1/e after `time_constant` values; a time constant of at most 1 changes nothing.
    """
    decay = math.exp(-1.0 / time_constant) if time_constant > 1.0 else 0.0
    total = weight = 0.0
    smoothed = []
    for value in values:
        if math.isfinite(value):
            total = decay * total + (1.0 - decay) * value
            weight = decay * weight + (1.0 - decay)
        smoothed.append(total / weight if weight else math.nan)
    return smoothed


def plot_runs(runs: Sequence[RunCurves], output: Path, title: str | None = None) -> None:
    """Draw the figure, with a colour and a line in the legend for each run, and save it as .png, .svg or .pdf."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11.0, 8.0), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(3, 2, height_ratios=(3.0, 1.5, 0.01 + 0.24 * len(runs)))
    by_samples, by_time = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    by_time.sharey(by_samples)
    depth, rate = figure.add_subplot(grid[1, 0]), figure.add_subplot(grid[1, 1])
    unit, seconds_a_unit = _time_unit(runs)

    handles = []
    for index, run in enumerate(runs):
        colour = COLOURS[index % len(COLOURS)]
        style = _LINE_STYLES[index // len(COLOURS) % len(_LINE_STYLES)]
        for axes, key, divisor in ((by_samples, "samples", 1.0), (by_time, "seconds", seconds_a_unit)):
            _draw_loss(axes, run, key, divisor, colour, style)
        samples = run.column("samples")
        depth.plot(samples, run.column("kept_blocks"), color=colour, alpha=0.25, linewidth=0.8)
        kept = smooth(run.column("kept_blocks"), _SMOOTHING_SHARE * 2 * len(samples))
        (handle,) = depth.plot(samples, kept, color=colour, linestyle=style, linewidth=1.8)
        handle.set_label(_legend_line(run))
        handles.append(handle)
        rate.plot(samples, run.column("lr"), color=colour, linestyle=style, linewidth=1.6)

    _label_loss_axes(by_samples, by_time, runs, unit)
    _add_theta(depth, runs)
    rate.set(title="learning rate", xlabel="samples", ylim=(0, None))
    _add_mask_shares(rate, runs)
    rate.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    for axes in (by_samples, depth, rate):
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    for axes in (by_samples, by_time, depth, rate):
        axes.grid(True, color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.title.set_fontsize(11)
        axes.margins(x=0.01)
    legend = figure.add_subplot(grid[2, :])
    legend.axis("off")
    names = legend.legend(handles=handles, loc="center", frameon=False, fontsize=10, ncols=1)
    for text in names.get_texts():
        text.set_parse_math(False)  # A dollar sign in a name is a dollar sign, not the start of a formula.
    if title:
        figure.suptitle(title, fontsize=13, fontweight="bold", parse_math=False)
    figure.savefig(output, dpi=160)


def _draw_loss(axes: Any, run: RunCurves, key: str, divisor: float, colour: str, style: str) -> None:
    """Draw the held-out loss as points, and the smoothed training loss as a pale line."""
    training = smooth(run.column("mlm_loss"), _SMOOTHING_SHARE * len(run.training))
    axes.plot([x / divisor for x in run.column(key)], training, color=colour, alpha=0.35, linewidth=1.0, zorder=2)
    positions = [x / divisor for x in run.column(key, of="evaluations")]
    held_out = run.column("eval_mlm_loss", of="evaluations")
    size = 4.0 if len(positions) <= 40 else 0.0
    axes.plot(positions, held_out, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=size, zorder=3)


def _label_loss_axes(by_samples: Any, by_time: Any, runs: Sequence[RunCurves], unit: str) -> None:
    by_samples.set(title="masked-LM loss against samples", xlabel="samples", ylabel="loss, nats a token")
    by_time.set(title="masked-LM loss against training time", xlabel=f"training time, {unit}")
    by_time.tick_params(labelleft=False)
    by_samples.plot([], [], color="#444444", linewidth=1.8, marker="o", markersize=4.0, label="held out, all blocks on")
    by_samples.plot([], [], color="#444444", linewidth=1.0, alpha=0.45, label="training, running mean")
    by_samples.legend(loc="upper right", frameon=False, fontsize=9)
    held_out = [v for run in runs for v in run.column("eval_mlm_loss", of="evaluations") if math.isfinite(v)]
    if held_out:
        # The axis ends below the losses of the first steps, which would compress the rest into the lower edge.
        losses = [v for run in runs for v in smooth(run.column("mlm_loss"), _SMOOTHING_SHARE * len(run.training))]
        finite = sorted(v for v in losses if math.isfinite(v))
        if finite:
            low, high = min(finite[0], *held_out), finite[min(len(finite) - 1, int(0.985 * len(finite)))]
            margin = 0.04 * max(high - low, 1e-3)
            by_samples.set_ylim(low - margin, high + margin)


def _add_theta(depth: Any, runs: Sequence[RunCurves]) -> None:
    """Draw θ as dotted lines on a second axis if any run drops layers."""
    layers = [run.num_layers for run in runs if run.num_layers is not None]
    top = max(layers) * 1.05 if layers else None
    depth.set(title="executed blocks", xlabel="samples", ylabel="blocks", ylim=(0, top))
    depth.yaxis.get_major_locator().set_params(integer=True)
    thetas = [run.column("theta") for run in runs]
    if all(value == 1.0 for theta in thetas for value in theta if math.isfinite(value)):
        return
    right = depth.twinx()
    for index, (run, theta) in enumerate(zip(runs, thetas, strict=True)):
        right.plot(run.column("samples"), theta, color=COLOURS[index % len(COLOURS)], linestyle=":", linewidth=1.4)
    right.set(ylabel="θ (dotted)", ylim=(0, 1.05))
    right.spines["top"].set_visible(False)
    depth.set_title("executed blocks and θ")


def _add_mask_shares(rate: Any, runs: Sequence[RunCurves]) -> None:
    """Draw the shares of masked tokens as dotted lines on a second axis if any run's changes."""
    shares = [run.column("mask_probability") for run in runs]
    if not any(len({value for value in share if math.isfinite(value)}) > 1 for share in shares):
        return
    right = rate.twinx()
    for index, (run, share) in enumerate(zip(runs, shares, strict=True)):
        right.plot(run.column("samples"), share, color=COLOURS[index % len(COLOURS)], linestyle=":", linewidth=1.4)
    right.set(ylabel="masked tokens (dotted)", ylim=(0, None))
    right.spines["top"].set_visible(False)
    rate.set_title("learning rate and share of masked tokens")


def _time_unit(runs: Sequence[RunCurves]) -> tuple[str, float]:
    seconds = [v for run in runs for of in ("training", "evaluations") for v in run.column("seconds", of=of)]
    longest = max((value for value in seconds if math.isfinite(value)), default=0.0)
    if longest > 3 * 3600:
        return "hours", 3600.0
    return ("minutes", 60.0) if longest > 180 else ("seconds", 1.0)


def _legend_line(run: RunCurves) -> str:
    """Return the run's label, its last held-out loss and its training time."""
    parts = []
    if run.evaluations:
        loss = run.evaluations[-1]["eval_mlm_loss"]
        parts.append("held-out loss not finite" if loss is None else f"held-out loss {loss:.3f}")
    ends = [lines[-1].get("seconds") for lines in (run.training, run.evaluations) if lines]
    known = [end for end in ends if end is not None]
    if known:
        parts.append(f"{max(known):,.0f} s of training")
    return f"{run.label}: {', '.join(parts)}" if parts else run.label


def main(options: argparse.Namespace) -> None:
    """Read the runs, draw the figure, and print its path and the legend."""
    check_figure_file("--output", options.output, "nothing was plotted")
    labels = options.label or [None] * len(options.runs)
    if len(labels) != len(options.runs):
        raise ValueError(
            f"--label: given {len(labels)} times; must be given once for each of {len(options.runs)} run(s)"
        )
    runs = [read_run(run_dir, label) for run_dir, label in zip(options.runs, labels, strict=True)]
    plot_runs(runs, options.output, options.title)
    print(f"wrote {options.output}")
    for run in runs:
        print(f"  {_legend_line(run)}")


def build_parser() -> argparse.ArgumentParser:
    """Return the command's parser."""
    parser = make_parser(
        "bert_pld.plot",
        "Plot runs in one figure: losses against samples and against time, θ and depth, learning rate.",
        "python -m bert_pld.plot runs/baseline runs/pld --output comparison.png --title 'PLD on the books'",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, with metrics.jsonl")
    parser.add_argument("--output", type=Path, required=True, help=".png, .svg or .pdf file to write")
    parser.add_argument("--title", help="title above the figure")
    label = "name of a run in the legend; repeat for each run, in order (default: its folder's name)"
    parser.add_argument("--label", action="append", help=label)
    return parser


if __name__ == "__main__":
    run_command(main, build_parser())
