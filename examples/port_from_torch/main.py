"""Train in PyTorch, go on in Flax: `python -m examples.port_from_torch.main --help`."""

import contextlib
import dataclasses
import importlib.util
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import matplotlib
import numpy as np
import tyro

from examples.port_from_torch.task import SHAPES, Settings

RECORDED = pathlib.Path(__file__).parent / "results" / "torch_run.npz"


@dataclasses.dataclass(frozen=True)
class Options:
    """A PyTorch run, continued in Flax from its checkpoint, beside PyTorch continuing by itself."""

    settings: tyro.conf.OmitArgPrefixes[Settings] = dataclasses.field(default_factory=Settings)
    workdir: pathlib.Path = pathlib.Path("runs/port_from_torch")
    """Where the plot and the numbers go."""
    recorded: bool = False
    """Take the PyTorch run that is in the repository: needs no torch."""


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Give a temporary name in the same folder, which takes the place of `path` at the end.

    The example's own, so that it can be copied without the repository's tools.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"new-{path.name}")
    yield new
    new.replace(path)


def save(path: pathlib.Path, run: dict[str, Any]) -> None:
    """A run as one file: arrays, and the rest as JSON."""
    arrays = {f"model/{k}": v for k, v in run["checkpoint"]["model"].items()}
    arrays |= {f"end/{k}": v for k, v in run["end"].items()}
    state = run["checkpoint"]["optimizer"]["state"]
    arrays |= {f"state/{i}/{k}": v for i, entry in state.items() for k, v in entry.items()}
    groups = json.dumps(run["checkpoint"]["optimizer"]["param_groups"])
    with replacing(path) as new:
        np.savez_compressed(new, losses=run["losses"], groups=groups, **arrays)


def load(path: pathlib.Path) -> dict[str, Any]:
    """What `save` wrote."""
    file = np.load(path)
    trees: dict[str, dict[str, Any]] = {"model": {}, "end": {}, "state": {}}
    for key in file.files:
        tree, _, rest = key.partition("/")
        if tree == "state":
            index, _, entry = rest.partition("/")
            trees["state"].setdefault(int(index), {})[entry] = file[key]
        elif rest:
            trees[tree][rest] = file[key]
    optimizer = {"state": trees["state"], "param_groups": json.loads(str(file["groups"]))}
    checkpoint = {"model": trees["model"], "optimizer": optimizer}
    return {"checkpoint": checkpoint, "losses": file["losses"].tolist(), "end": trees["end"]}


def plot(path: pathlib.Path, theirs: list[float], ours: list[float], fresh: list[float]) -> None:
    """Both curves, and that of a run that carried the weights alone."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    start = len(theirs) - len(ours)
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(8, 6), height_ratios=(2, 1), sharex=True, layout="constrained"
    )
    above.semilogy(theirs, label="PyTorch", linewidth=3, alpha=0.5)
    later = range(start, len(theirs))
    above.semilogy(later, ours, "k--", linewidth=1, label="Flax, from PyTorch's checkpoint")
    above.semilogy(later, fresh, linewidth=1, label="Flax, from its weights alone")
    above.axvline(start, color="grey", linewidth=0.8)
    above.set(ylabel="training loss", title="A PyTorch run, continued in Flax")
    above.legend()
    below.semilogy(later, np.abs(np.array(theirs[start:]) - ours), "k", linewidth=1)
    below.set(xlabel="step", ylabel="difference of the losses")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    with replacing(path) as new:
        figure.savefig(new, dpi=120)
    plt.close(figure)


def main(options: Options) -> int:
    """Run, plot, and print how far the two are apart."""
    if not options.recorded and importlib.util.find_spec("torch") is None:
        print("error: torch is not installed: install it, or give --recorded", file=sys.stderr)
        return 2
    if options.recorded and options.settings != Settings():
        print("error: the recorded run has the default settings", file=sys.stderr)
        return 2
    from examples.port_from_torch import ours

    if options.recorded:
        run = load(RECORDED)
    else:
        from examples.port_from_torch import theirs

        run = theirs.run(options.settings)
        save(options.workdir / "torch_run.npz", run)
    steps = options.settings.steps
    graph, params, state = ours.carried(options.settings, run["checkpoint"])
    end, _, losses = ours.train(options.settings, steps, graph, params, state)
    empty = ours.optimizer(options.settings).init(params)
    _, _, fresh = ours.train(options.settings, steps, graph, params, empty)
    plot(options.workdir / "curves.png", run["losses"], losses, fresh)

    layout = ours.interop.layout(params, flattened={"head": SHAPES["flattened"]})
    report(run, losses, fresh, layout.to_torch(end))
    print(f"plot: {options.workdir / 'curves.png'}")
    return 0


def report(
    run: dict[str, Any], losses: list[float], fresh: list[float], end: Mapping[str, Any]
) -> None:
    """How far the two are apart, beside how far the weights moved."""
    theirs = np.array(run["losses"][-len(losses) :])
    moved = apart(run["end"], run["checkpoint"]["model"])
    print(f"{len(losses)} steps in PyTorch, then {len(losses)} in both from its checkpoint")
    print(f"largest difference of a loss: {np.abs(theirs - losses).max():.1e}")
    print(f"largest difference of a weight: {apart(end, run['end']):.1e}; it moved {moved:.2f}")
    first = [float(np.mean(values[:20])) for values in (fresh, losses)]
    print(f"from the weights alone the next 20 losses are {first[0]:.3f}, not {first[1]:.3f}")


def apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """The largest difference of a weight."""
    return max(float(np.abs(a[name] - b[name]).max()) for name in b)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
