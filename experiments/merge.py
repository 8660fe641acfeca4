"""Puts runs that differ in their seeds together: `python -m experiments.merge RUN RUN ... --out DIR`.

Run each seed where and when you like, `python -m experiments.navigation_2d --seeds 3 --run-dir seed3`, as a
job of an array, and merge what is finished: policies, attackers, returns, metrics, and one report of all.
"""

import sys

from admrl_jax.commands.merge import merge_main

if __name__ == "__main__":
    sys.exit(merge_main("experiments.merge RUN RUN ...", __doc__ or ""))
