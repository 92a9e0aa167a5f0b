"""The moments in four, two and one byte a parameter: the same runs, the same data order."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from examples.cifar10 import configs
from experiments import common

TRIALS = {name: ["--storage", name] for name in ("float32", "uint16", "uint8")}
BOTH = {
    "float32": [],
    "uint16, int16": ["--storage", "uint16", "--momentum-storage", "int16"],
    "uint8, int8": ["--storage", "uint8", "--momentum-storage", "int8"],
}


def study(results: Path, arguments: Sequence[str]) -> None:
    """Train with every format of the second moment, or with `--both` of the momentum too."""
    flags = [flag for flag in arguments if flag != "--both"]
    both = len(flags) < len(arguments)
    trials = BOTH if both else TRIALS
    metrics = common.run(trials, flags)
    module = "experiments.storage"
    what = "Both moments" if both else "The second moment"
    title = f"{what} in fewer bytes: the preset small"
    lines = common.header(title, module, arguments, metrics)
    lines += [
        "| format | n | final training loss | accuracy, % | with TTA, % | optimizer's state, "
        "bytes a parameter | temporary memory of its update, bytes a parameter |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name, runs in metrics.items():
        ends = [common.result(rows) for rows in runs]
        loss = [[row["loss"] for row in rows if row["kind"] == "train"][-1] for rows in runs]
        accuracy = [[100 * end[key] for end in ends] for key in ("accuracy", "accuracy_tta")]
        columns = [common.mean_and_spread(loss, 4), *map(common.mean_and_spread, accuracy)]
        columns += [f"{size:.2f}" for size in memory([*trials[name], *flags])]
        lines.append(f"| {name} | {len(runs)} | {' | '.join(columns)} |")
    common.write(results / f"storage{'_both' * both}.md", lines)


def memory(flags: Sequence[str]) -> tuple[float, float]:
    """Measure the optimizer's arrays and its compiled update, in bytes a parameter."""
    import jax

    from examples.cifar10 import data, devices, optimizer, report, train

    options = configs.parse(flags)
    dataset, layout = data.load(options, report.say), devices.layout(options)
    epochs = options.recipe.epochs or dataset.epochs
    recipe = dataclasses.replace(options.recipe, epochs=epochs)
    tx, _ = optimizer.optimizer(recipe, total_steps=epochs)
    _, carry = train.create(recipe, dataset, tx, layout)
    params, state = carry.params, carry.opt_state
    update = jax.jit(tx.update, donate_argnums=1).lower(params, state, params).compile()
    live = sum(array.nbytes for array in jax.tree.leaves(state))
    parameters = sum(array.size for array in jax.tree.leaves(params))
    return live / parameters, update.memory_analysis().temp_size_in_bytes / parameters


if __name__ == "__main__":
    common.main(study)
