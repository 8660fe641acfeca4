"""Calls the MuJoCo engine from compiled programs under CPU load: `python -m faults.hang`.

Every run is a process with two devices and an engine of two threads, beside processes that keep all
cores busy. A watchdog shows the stacks of a run that hangs and ends it.
"""

import faulthandler
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import jax
import tyro

from admrl_jax import training
from admrl_jax.attacks.base import Victim
from admrl_jax.attacks.learned.adgan import AdGANConfig
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.defences.adgan import AdGANTrainingConfig, adgan_defence
from admrl_jax.envs.half_cheetah import HalfCheetahDirConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.runs.devices import SAME, Devices
from admrl_jax.sampling import SamplingConfig
from faults.toy_runs import ROOT, write_result


@dataclass(frozen=True)
class Arguments:
    """How often and how hard."""

    runs: int = 20
    steps: int = 10
    """Outer steps per run."""
    seconds: float = 300.0
    """After which a run counts as hung."""
    burners: int = os.cpu_count() or 1
    """Busy processes beside it; by default one for each core."""
    minutes: float = 60.0
    """No run is started after so many minutes."""
    worker: bool = False
    """Be one of the runs."""
    name: str = "hang"
    """Of the file under `faults/results/`."""


def work(steps: int) -> None:
    """Outer steps of a toy HalfCheetah, tasks spread over two devices."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_disable_most_optimizations", True)
    env = make_env(HalfCheetahDirConfig(horizon=20), simulator="mujoco", num_threads=2)
    policy = make_policy(env.obs_size, env.action_size, PolicyConfig(hidden_sizes=(8,)))
    sampling = SamplingConfig(num_tasks=4, num_trajectories=4)
    setup = training.Setup(env, policy, make_maml_trpo(policy), sampling)
    adversary = AdGANConfig(hidden_sizes=(8,), num_minibatches=2)
    defence = adgan_defence(
        AdGANTrainingConfig(perturbation_bound=0.1, adversary=adversary),
        Victim(policy, env.obs_size, env.action_size),
    )
    devices = Devices(2, task_block=1)
    step = functools.partial(training.outer_step, setup=setup, defence=defence, axis=devices.axis)
    run = jax.jit(devices.spread(step, (SAME,), SAME))
    state = devices.place(training.init_train_state(jax.random.key(0), setup, defence))
    for _ in range(steps):
        state, metrics = run(state)
        print(float(metrics["train/post_return"]))


def burn() -> None:
    """Keeps a core busy."""
    while True:
        sum(i * i for i in range(10**6))


def main(arguments: Arguments) -> int:
    """Returns 1 if a run hung, failed or printed other numbers than the first."""
    if arguments.worker:
        faulthandler.dump_traceback_later(arguments.seconds, exit=True)
        work(arguments.steps)
        return 0
    burners = [multiprocessing.Process(target=burn, daemon=True) for _ in range(arguments.burners)]
    for burner in burners:
        burner.start()
    outputs, failures, began = [], [], time.time()
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "faults.hang", "--worker"]
        command += [f"--steps={arguments.steps}", f"--seconds={arguments.seconds}"]
        for _ in range(arguments.runs):
            if time.time() > began + 60 * arguments.minutes:
                break
            environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            outputs.append(done.stdout)
            if done.returncode:
                failures.append(f"exit code {done.returncode}: {done.stderr[-3000:]}")
            print(f"{len(outputs)}: exit code {done.returncode}", file=sys.stderr, flush=True)
    for burner in burners:
        burner.kill()
    result = {
        "runs": len(outputs),
        "outer steps per run": arguments.steps,
        "busy processes beside it": arguments.burners,
        "hung or failed": len(failures),
        "failures": failures,
        "all print the same numbers": len(set(outputs)) == 1,
        "seconds": round(time.time() - began),
    }
    write_result(arguments.name, result)
    return int(bool(failures) or len(set(outputs)) != 1)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Arguments, description=__doc__)))
