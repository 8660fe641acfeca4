"""Puts runs that differ in their seeds together: `python -m experiments.merge RUN RUN ... --out DIR`.

Run each seed where and when you like, `python -m experiments.navigation_2d --seeds 3 --run-dir seed3`, as a
job of an array, and merge what is finished: policies, attackers, returns, metrics, and one report of all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from admrl_jax.protocol.command_line import fail
from admrl_jax.protocol.merge import merge_runs
from admrl_jax.runs.artefact import ArtefactError
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import DamagedFileError


def main(argv: Sequence[str] | None = None) -> int:
    """Merges; returns the exit code: 0, or 2 where something is not accepted."""
    parser = argparse.ArgumentParser(
        "python -m experiments.merge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, help="directories of finished runs")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args(argv)
    try:
        report = merge_runs(arguments.runs, arguments.out)
    except (RunError, ArtefactError, DamagedFileError) as error:
        return fail(str(error))
    print(f"report: {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
