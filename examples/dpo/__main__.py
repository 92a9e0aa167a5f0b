"""Tune a character model with several optimizers: `python -m examples.dpo --help`."""

import dataclasses
import sys
from pathlib import Path

import jax
import tyro
from rich.console import Console
from rich.table import Table

from examples.char_rnn import char_rnn
from examples.dpo import dpo, report


@dataclasses.dataclass(frozen=True)
class Options:
    """Tune a character model with several optimizers, print a table, and draw a figure."""

    text: Path | None = None
    """What the model was trained on; by default Python's reference documentation."""
    model: Path = Path("runs/char_rnn")
    """The workdir of `examples.char_rnn`; what its run lacks is trained first."""
    rules: tuple[str, ...] = ("adamw", "rmsprop", "uint8", "nearest")
    """AdamW and the recipe in float32; the recipe with its state in one byte and the parameters in
    bfloat16, rounded stochastically, or to nearest."""
    learning_rate: float = 1e-4
    """After the warm-up; the recipe's 5e-7 is for models of billions of parameters."""
    updates: int = 320
    """Rounded up to a multiple of 32."""
    seeds: int = 1
    """Of each rule; a seed chooses the pairs."""
    workdir: Path = Path("runs/dpo")
    """Folder of the figure."""

    def check(self) -> None:
        """Refuse what cannot be."""
        for name in ("updates", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"--learning-rate must be in (0, inf), got {self.learning_rate}")
        known = dpo.rules(self.learning_rate)
        unknown = [rule for rule in self.rules if rule not in known]
        if unknown or not self.rules:
            raise ValueError(f"--rules must be some of {', '.join(known)}, got {unknown or 'none'}")


def main(options: Options) -> int:
    """Tune with a line for each measurement, print a table and text; return the exit code."""
    console = Console(highlight=False)
    try:
        options.check()
        model = dpo.start(char_rnn.Options(options.text, workdir=options.model), console.print)
        every = dpo.rules(options.learning_rate)
        chosen = {name: every[name] for name in options.rules}
        results, tuned = dpo.compare(model, chosen, options.seeds, options.updates, console.print)
        report.draw(options.workdir / "curves.png", results, dpo.PART)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    heading, *rows = report.rows(results, sum(x.size for x in jax.tree.leaves(model.params)))
    table = Table(*heading)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for name, params in {"before": model.params, **tuned}.items():
        console.print(f"[bold]{name}[/bold]")
        print(dpo.example(model, params))
    print(f"\nwritten to {options.workdir / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
