"""Attacks saved policies with many attackers: `python -m experiments.attack RUN_OR_NPZ`.

Trains and tries every attacker of a suite against every policy of a run, or of its `policies.npz`, at every
radius, and reports the lowest return that any of them leaves, on tasks that nothing was chosen on, with what
speaks for and against that number. Stopped, the same command goes on.
"""

import sys

from admrl_jax.commands.attack import attack_main

if __name__ == "__main__":
    sys.exit(attack_main("experiments.attack RUN_OR_NPZ", __doc__ or ""))
