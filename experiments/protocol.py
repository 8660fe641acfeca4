"""The paper's protocol on one environment, stage by stage, from a config to a report.

pretrain (clean) -> warmup (adGAN on the frozen policy) -> finetune each method -> adaptive (a
fresh generator against each frozen victim) -> meta-test grid and convergence curves -> report.

Every stage leaves its result on disk and is not run again once it is there.
"""

import json
import platform
import resource
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from admrl_jax import evaluation
from admrl_jax.config import to_dict
from admrl_jax.files import write_text
from admrl_jax.report import write_report
from experiments.context import Context
from experiments.eval_stages import EvalStages
from experiments.train_stages import TrainStages

PACKAGES = ("jax", "jaxlib", "flax", "optax", "mujoco", "mujoco-mjx", "numpy", "gymnasium")


UNTIL = ("pretrain", "finetune", "report")
"""Where a run may be told to stop; a later one goes on from there."""


def run_protocol(context: Context, preset: str, until: str = "report") -> Path:
    """Runs every stage that is not done yet.

    Args:
        context: the run.
        preset: `paper`, `quick` or `custom`, for the report.
        until: the last stage to run, one of `UNTIL`.

    Returns:
        Path of the report, or of the run directory where the run stops earlier.

    Raises:
        Interrupted: SIGINT or SIGTERM came; everything done so far is saved.
    """
    train, evaluate = TrainStages(context), EvalStages(context)
    with context.stop:
        pretrained, pretrain_snapshots = train.pretrain()
        if until == "pretrain":
            return context.directory
        base = train.measure_units(pretrained)
        warmed_up = train.warm_up(base)
        arms = train.finetune(base, warmed_up)
        if until == "finetune":
            return context.directory
        trained = {method: state for method, (state, _) in arms.items()}
        snapshots = {"pretrain": pretrain_snapshots} | {method: kept for method, (_, kept) in arms.items()}
        adaptive, no_gan = train.attack_victims(trained)
        rows = evaluate.meta_test(trained, adaptive, no_gan)
        curves = evaluate.convergence_curves(snapshots, trained)
        evaluate.save_trajectories(trained, adaptive)
        if not context.writes:
            return context.directory
        save_results(context, preset, rows, curves)
        return write_report(context.directory)


def save_results(
    context: Context, preset: str, rows: list[dict[str, Any]], curves: list[dict[str, Any]]
) -> None:
    """Writes `results.json` (the same bits for the same run) and `timing.json` (never the same)."""
    floor = evaluation.do_nothing_returns(
        context.eval_key,
        context.tasks,
        env=context.env,
        num_trajectories=context.config.eval.num_trajectories,
    )
    results = {
        "env": context.config.env.name,
        "preset": preset,
        "config": to_dict(context.config),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "device": jax.devices()[0].device_kind,
        "simulator": getattr(getattr(context.env, "simulator", None), "name", "none"),
        "floor": float(np.asarray(floor).mean(dtype=np.float64)),
        "rows": rows,
        "curves": curves,
    }
    write_text(context.directory / "results.json", json.dumps(results, indent=1) + "\n")
    path = context.directory / "timing.json"
    before = json.loads(path.read_text()) if path.exists() else {"seconds": {}}
    timing = {
        "seconds": before["seconds"] | {k: round(v, 1) for k, v in context.seconds.items()},
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    write_text(path, json.dumps(timing, indent=1) + "\n")
