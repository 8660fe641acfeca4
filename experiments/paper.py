"""The whole paper, every claim judged: `python -m experiments.paper [--envs ...] [--seeds ...]`.

A unit is one environment and one seed; units do not know each other. `--list` prints a command for each,
for a job array or GNU parallel: `python -m experiments.paper --list > units.txt`. Then the command itself
puts together what is finished and writes `report.md` and `claims.json`.
"""

import sys

from admrl_jax.commands.paper import paper_main
from experiments import ant_vel, halfcheetah_dir, halfcheetah_vel, navigation_2d, reacher

EXPERIMENTS = {
    "navigation_2d": (navigation_2d.PRESETS, 10),
    "halfcheetah_dir": (halfcheetah_dir.PRESETS, 5),
    "halfcheetah_vel": (halfcheetah_vel.PRESETS, 5),
    "reacher": (reacher.PRESETS, 5),
    "ant_vel": (ant_vel.PRESETS, 3),
}
"""Presets and how many seeds, by environment."""
PRESETS = {env: presets for env, (presets, _) in EXPERIMENTS.items()}
SEEDS = {env: count for env, (_, count) in EXPERIMENTS.items()}

if __name__ == "__main__":
    sys.exit(paper_main("experiments.paper", __doc__ or "", PRESETS, SEEDS))
