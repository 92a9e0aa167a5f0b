"""Deep Q-learning: `python -m examples.dqn --help`."""

import sys

import tyro

from examples.dqn import dqn

if __name__ == "__main__":
    sys.exit(dqn.main(tyro.cli(dqn.Options, config=(tyro.conf.FlagCreatePairsOff,))))
