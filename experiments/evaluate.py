"""Evaluates saved policies: `python -m experiments.evaluate RUN_OR_NPZ`.

Adapts policies of a run, or of its `policies.npz`, to tasks that are drawn or given, step by step, and
measures the return at every stage: for any number of episodes per step, any number of steps, and a step size
of its own for each. Leaves a table, a figure, numbers in JSON and, with `--video`, films of the body.
"""

import sys

from admrl_jax.commands.evaluate import evaluate_main

if __name__ == "__main__":
    sys.exit(evaluate_main("experiments.evaluate RUN_OR_NPZ", __doc__ or ""))
