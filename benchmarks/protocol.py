"""The time of a whole run of the paper's protocol: `python -m benchmarks.protocol`.

Every stage is compiled as a run compiles it, with its methods and seeds in as many lanes as the device
holds, and a few of its steps are timed. Hours are those of all its steps; checkpoints and the report, which
take seconds, are left out. Where a stage's methods do not fit into one program, it has several in turn.
"""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import tyro

from admrl_jax.config import METHODS, Config, validate
from admrl_jax.sharding import make_cpu_devices
from benchmarks.common import preset_of, report
from experiments.arms import Arm, Recipe
from experiments.context import Context, generator_of
from experiments.eval_stages import EvalStages
from experiments.train_stages import TrainStages


@dataclass(frozen=True)
class Arguments:
    """Hours of each stage of a run, from a few of its steps."""

    env: tuple[str, ...] = ("halfcheetah_dir",)
    preset: str = "paper"
    """paper or quick."""
    simulator: str = "auto"
    seeds: int = 5
    """Seeds of the run."""
    lanes: int = 0
    """Lanes computed at once; 0 chooses, as in a run."""
    repeats: int = 2
    """Steps timed per stage, after one that is not."""
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def config_of(name: str, arguments: Arguments) -> Config:
    """The preset of an environment with the seeds and the engine asked for."""
    config = preset_of(name, arguments.preset)
    seeds = tuple(range(arguments.seeds))
    return validate(replace(config, seeds=seeds, simulator=arguments.simulator, lanes=arguments.lanes))


def count_cells(config: Config) -> int:
    """Evaluations of the meta-test grid and of the convergence curves, each of all seeds."""
    strengths, schedule = len(config.eval.strengths), config.schedule
    # Clean; five attacks in three support x query cells; for maml also attackers without the GAN term.
    grid = len(METHODS) * (1 + 5 * strengths * 3) + strengths * 3
    before = 1 + math.ceil(schedule.pretrain_steps / schedule.snapshot_every)
    after = math.ceil(schedule.finetune_steps / schedule.snapshot_every)
    return grid + 4 * (before + len(METHODS) * after)


def measure(name: str, arguments: Arguments) -> list[dict[str, Any]]:
    """A row per stage and one for all of them."""
    config = config_of(name, arguments)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        context = Context(config, Path(folder))
        train, evaluate = TrainStages(context), EvalStages(context)

        def timed(
            stage: str, steps: int, arms: int, turns: int, lanes: Callable[[], int], run: Callable[[], Any]
        ) -> Any:
            start = time.perf_counter()
            result = run()
            first = time.perf_counter() - start
            seconds = []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                run()
                seconds.append(time.perf_counter() - start)
            rows.append(
                {
                    "env": name,
                    "simulator": getattr(getattr(context.env, "simulator", None), "name", "closed form"),
                    "seeds": arguments.seeds,
                    "stage": stage,
                    "arms": arms,
                    "programs_in_turn": turns,
                    "lanes_at_once": lanes(),
                    "steps": steps,
                    "first_s": first,
                    "step_s": median(seconds),
                    "hours": turns * steps * median(seconds) / 3600,
                }
            )
            return result

        def train_stage(stage: str, arms: list[Arm], recipe: Recipe) -> Any:
            size = train.arms_at_once(arms, recipe)
            group = arms[:size]
            states, _ = timed(
                stage,
                recipe.num_steps,
                len(arms),
                math.ceil(len(arms) / size),
                lambda: train.programs.lanes_at_once(group, recipe, 1),
                lambda: train.programs.run(group, recipe, 1),
            )
            return states[0]

        schedule = config.schedule
        state = train_stage("pretrain", [train.first_arm()], train.recipe(schedule.pretrain_steps))
        base = train.measure_units(state)
        train_stage(
            "warmup", [train.warmup_arm(base)], train.recipe(schedule.warmup_steps, train_policy=False)
        )
        train_stage("finetune", train.methods(base, base), train.recipe(schedule.finetune_steps))
        train_stage("attackers", train.attackers(dict.fromkeys(METHODS, base)), train.attack_recipe())
        timed(
            "evaluation",
            count_cells(config),
            1,
            1,
            lambda: evaluate.lanes_at_once,
            lambda: evaluate.evaluate(base, base.policy_params, "adgan", generator_of(base), 0.2, 0.2),
        )
    total = {**dict.fromkeys(rows[0], "-"), **{k: rows[0][k] for k in ("env", "simulator", "seeds")}}
    rows.append({**total, "stage": "whole run", "hours": sum(row["hours"] for row in rows)})
    return rows


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.protocol", description=__doc__)
    make_cpu_devices()
    rows = [row for name in arguments.env for row in measure(name, arguments)]
    report(
        "A whole run of the paper's protocol",
        rows,
        arguments.json,
        bars=("hours",),
        labels=("env", "simulator", "stage"),
        unit="hours",
    )


if __name__ == "__main__":
    main()
