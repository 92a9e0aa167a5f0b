"""One run or several, and their tables."""

import dataclasses
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from examples.cifar10 import data, devices, report
from examples.cifar10.configs import Options
from examples.cifar10.data import Dataset
from examples.cifar10.loop import train_and_evaluate


def run(options: Options, arguments: Sequence[str]) -> None:
    """Load the data, train with every seed, and show and write the results."""
    workdir = options.workdir or Path("runs", time.strftime("%Y-%m-%d-%H%M%S"))
    layout = devices.layout(options)
    if devices.first_process():  # It fills the cache, and the others read it.
        dataset = data.load(options, report.say)
        devices.meet("data")
    else:
        devices.meet("data")
        dataset = data.load(options, report.say)
    environment = report.environment()
    report.say(
        f"{dataset.label}: {len(dataset.train_images):,} training images, "
        f"{len(dataset.test_images):,} {dataset.split} images"
    )
    report.say(
        f"{options.preset} with {options.recipe.optimization.optimizer} on {layout.mesh.size} x "
        f"{environment['device']}; {environment['processor']}; results in {workdir}"
    )
    results = []
    for seed in range(options.recipe.seed, options.recipe.seed + options.seeds):
        folder = workdir if options.seeds == 1 else workdir / f"seed-{seed}"
        # Of several runs, those that had not begun start afresh.
        resume = options.resume and (options.seeds == 1 or (folder / "config.json").exists())
        recipe = dataclasses.replace(options.recipe, seed=seed)
        results.append(train_and_evaluate(recipe, dataset, folder, resume, layout))
        show(results[-1], options.recipe.no_tta)
    if options.seeds > 1:
        text = summary(results, dataset, environment, arguments)
        path = options.results or workdir / "results.md"
        report.write_text(path, text)
        report.say(text + f"\nwritten to {path}")


def show(result: dict, no_tta: bool) -> None:
    """Print the table of one run."""
    tta = (f"{result['split']} accuracy, with TTA", f"{result['accuracy_tta']:.2%}")
    accuracies = result["accuracies"]
    report.table(
        result["data"],
        [
            (f"{result['split']} accuracy", f"{result['accuracy']:.2%}"),
            *([] if no_tta else [tta]),
            (
                "by epoch, 0 to 100 %",
                f"{report.sparkline(accuracies)}  {accuracies[0]:.0%} → {accuracies[-1]:.0%}",
            ),
            ("training", f"{result['epoch']} epochs, {result['seconds']:.1f} s"),
            ("compilation", f"{result['compile_seconds']:.1f} s"),
            ("parameters", f"{result['parameters']:,}"),
            ("seed", result["seed"]),
        ],
    )


def summary(
    results: list[dict], dataset: Dataset, environment: dict[str, str], arguments: Sequence[str]
) -> str:
    """Return a Markdown table with mean and spread over the seeds."""
    columns = {
        f"{dataset.split} accuracy, %": [100 * r["accuracy"] for r in results],
        "with TTA, %": [100 * r["accuracy_tta"] for r in results],
        "training, s": [r["seconds"] for r in results],
    }
    lines = [
        f"# {dataset.name}: {results[0]['epoch']} epochs, n = {len(results)}",
        "",
        report.command("examples.cifar10.main", arguments),
        "",
        *(f"- {name}: {value}" for name, value in environment.items()),
        f"- data: {dataset.label}",
        f"- date: {time.strftime('%Y-%m-%d')}",
        "",
        "| seed | " + " | ".join(columns) + " |",
        "|---" + "|--:" * len(columns) + "|",
    ]
    numbers = list(columns.values())
    rows = {
        str(r["seed"]): values
        for r, values in zip(results, zip(*numbers, strict=True), strict=True)
    }
    rows["**mean**"] = map(statistics.mean, numbers)
    rows["standard deviation"] = map(statistics.stdev, numbers)
    lines += [
        f"| {name} | " + " | ".join(f"{value:.2f}" for value in values) + " |"
        for name, values in rows.items()
    ]
    return "\n".join(lines) + "\n"
