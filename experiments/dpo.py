"""Direct preference optimization in several memories: `python -m experiments.dpo`.

The character model is that of `examples.char_rnn`, trained first if `--model` holds none.
"""

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from examples.char_rnn import char_rnn
from examples.cifar10.configs import UserError
from examples.cifar10.main import exit_code
from examples.dpo import dpo, report
from examples.dpo.__main__ import Options
from experiments import common
from tools import environment


def study(
    results: Path, model_folder: Path, seeds: int, updates: int, arguments: Sequence[str] = ()
) -> None:
    """Tune with every rule, and write `dpo.md` and `dpo.png`."""
    say = functools.partial(print, flush=True)
    model = dpo.start(char_rnn.Options(workdir=model_folder), say)
    found, tuned = dpo.compare(model, dpo.rules(Options.learning_rate), seeds, updates, say)
    updates = dpo.PART * (next(iter(found.values())).curves.shape[1] - 1)  # whole parts
    count = sum(x.size for x in jax.tree.leaves(model.params))
    heading, *rows = report.rows(found, count)
    python = ".".join(map(str, sys.version_info[:3]))
    lines = environment.heading(
        "Direct preference optimization in several memories", "experiments.dpo", arguments,
        model=f"an LSTM of {count:,} parameters, trained on the documentation in Python {python}",
        pairs=f"{dpo.PROMPT} characters of the text and {dpo.CONTINUATION} of the model; the one "
        f"with more lower-case letters is preferred; {dpo.TESTED} held out",
        setting=f"{updates} updates of {dpo.BATCH} pairs, each pair once; β {dpo.BETA}; rate "
        f"{Options.learning_rate:g} after a warm-up of 150 updates, norms clipped to 10",
        n=f"{seeds} seeds of the pairs, one model, mean ± standard deviation",
        date=time.strftime("%Y-%m-%d"),
    )  # fmt: skip
    lines += [LEGEND, "", f"| {' | '.join(heading)} |", "|---|" + 6 * "--:|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += ["", f"## What they write after the first {dpo.PROMPT} characters that are held out"]
    for name, params in {"before": model.params, **tuned}.items():
        lines += ["", report.NAMES.get(name, name) + ":", "", "```text"]
        lines += [*dpo.example(model, params).splitlines(), "```"]
    results.mkdir(parents=True, exist_ok=True)
    environment.write_text(results / "dpo.md", "\n".join(lines) + "\n")
    report.draw(results / "dpo.png", found, dpo.PART)


LEGEND = (
    "Weights, state of the optimizer, and both: bytes a parameter. Accuracy: of the held-out "
    "pairs, whose\npreferred continuation has gained on the other. KL: from the model before, in "
    "nats a character, on what\nthe tuned model writes. Letters: lower-case ones in that."
)


def main(arguments: Sequence[str]) -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m experiments.dpo", description=__doc__)
    parser.add_argument("--results", type=Path, default=common.RESULTS, help="folder of the files")
    parser.add_argument("--model", type=Path, default=Options.model, help="of the character model")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=Options.updates)
    options = parser.parse_args(arguments)

    def work() -> None:
        for name in ("seeds", "updates"):
            if getattr(options, name) < 1:
                raise UserError(f"--{name} must be at least 1, got {getattr(options, name)}")
        study(options.results, options.model, options.seeds, options.updates, arguments)

    sys.exit(exit_code(work))


if __name__ == "__main__":
    main(sys.argv[1:])
