"""Rounds of generate, build, train and evaluate, in which each model makes the next one's data.

    alignment loop --config recipes/clair/loop.yaml

Every stage is one of the other commands, shown as it is run, in a folder that is named by all that
it depends on: an interrupted loop goes on where it stopped, and a changed setting makes anew what
depends on it and nothing else.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

from alignment.cli import parse, run, say
from alignment.llm.lock import locked
from alignment.rounds.loop import load_loop
from alignment.rounds.options import Options, check_keys
from alignment.rounds.report import draw, lines
from alignment.rounds.running import Running


def loop(options: Options) -> dict[str, Any]:
    """Runs all rounds that are not done, and draws the scores.

    Returns:
        What `results.json` holds.

    Raises:
        UserError: The options do not fit together, or a stage's own.
    """
    method = load_loop(options.method, options.method_kwargs)
    check_keys(options, method.builder)
    if options.threads is not None:
        import torch

        torch.set_num_threads(options.threads)
    running = Running(options, method)
    with locked(options.output):
        results = running.run()
        draw(options.output, results)
    return results


def main(argv: list[str]) -> None:
    """`alignment loop`."""
    options = parse(Options, argv, "alignment loop", __doc__)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for line in lines(loop(options)):
        say(line)
    say(f"written to {options.output}")


if __name__ == "__main__":
    run(main)
