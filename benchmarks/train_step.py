"""Where the time of an outer step goes: `python -m benchmarks.train_step`.

One step of the method admrl at the paper's sizes is timed whole, as a run takes it, and in its pieces: the
programs that it consists of, each waited for. Two figures of the physics: the time that the C engine was at
work within the whole step, and the engine alone, open loop over the same number of control steps, timed in
the same turn.
"""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import tyro

from admrl_jax.config import Config
from admrl_jax.core.types import Task
from admrl_jax.envs.base import BuiltInConfig
from admrl_jax.envs.physics import PhysicsEnv
from admrl_jax.protocol.lanes import LanePrograms, Piece
from admrl_jax.protocol.parts import build_parts
from admrl_jax.protocol.train_stages import train_step
from admrl_jax.runs.devices import CPU_DEVICES, Devices, choose_num_devices
from admrl_jax.runs.programs import Programs
from admrl_jax.training import TrainState, init_train_state, step_keys
from benchmarks.common import preset_of, report, start, time_in_turn
from benchmarks.limits import draw_starts, engine_clock, open_loop

METHOD = "admrl"


@dataclass(frozen=True)
class Arguments:
    """Seconds of one outer step of admrl and of its parts."""

    env: tuple[str, ...] = ("navigation_2d", "halfcheetah_dir")
    preset: str = "paper"
    """paper or quick."""
    simulator: str = "auto"
    num_tasks: int = 0
    """Other sizes than the preset's; 0 keeps them."""
    num_trajectories: int = 0
    horizon: int = 0
    task_block: int = 0
    """Tasks whose gradients are computed together; 0 chooses, as in training."""
    num_devices: int = 0
    """Devices over which tasks are spread; 0 takes as many as training does."""
    repeats: int = 5
    json: Path | None = None
    """Also write the figures here (and a picture beside it)."""


def config_of(name: str, arguments: Arguments) -> Config:
    """The preset of an environment at the sizes asked for."""
    config = preset_of(name, arguments.preset)
    env = config.env
    if isinstance(env, BuiltInConfig):
        env = replace(env, horizon=arguments.horizon or env.horizon)
    sampling = replace(
        config.sampling,
        num_tasks=arguments.num_tasks or config.sampling.num_tasks,
        num_trajectories=arguments.num_trajectories or config.sampling.num_trajectories,
    )
    return replace(
        config,
        env=env,
        methods=(METHOD,),
        simulator=arguments.simulator,
        num_devices=arguments.num_devices or choose_num_devices([sampling.num_tasks]),
        task_block=arguments.task_block,
        sampling=sampling,
    )


class Clock(LanePrograms):
    """Runs the programs of a step for one lane, and notes the time and the memory of each."""

    def __init__(self, programs: Programs):
        super().__init__(programs, 1)
        self.compiling: dict[str, float] = {}
        """Seconds, by the first word of a program's name."""
        self.mib: dict[str, float] = {}
        """The compiler's account of a program's buffers, arguments and results, per device."""
        self.seconds: dict[str, list[float]] = {}
        self.results: dict[str, Any] = {}
        """Of the latest call."""

    def call(self, piece: Piece, *arguments: Any) -> Any:
        """Also notes; waits for the result."""
        name = piece.name.split()[0]
        if name not in self.compiling:
            start = time.perf_counter()
            self.mib[name] = self.needed_bytes(piece, *arguments) / 2**20
            self.compiling[name] = time.perf_counter() - start
        start = time.perf_counter()
        result = jax.block_until_ready(super().call(piece, *arguments))
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)
        self.results[name] = result
        return result


class Step:
    """An outer step of one seed, as a run takes it, of the first of the config's methods."""

    def __init__(self, config: Config):
        method = config.methods[0]
        parts = build_parts(config)
        self.config, self.env = config, parts.env
        self.setup, self.defence = parts.setup(method), parts.defence(method)
        self.devices = Devices(config.num_devices, config.task_block)
        programs = Programs(self.devices)
        self.clock, self._unwatched = Clock(programs), LanePrograms(programs, 1)
        self._take = train_step(self.setup, self.defence, self.devices.axis)

    def init(self) -> TrainState:
        """A fresh policy and a fresh adversary, leading axis one lane."""
        init = functools.partial(init_train_state, setup=self.setup, defence=self.defence)
        return self.devices.place(jax.jit(jax.vmap(init))(jax.random.key(0)[None]))

    def whole(self, state: TrainState) -> Any:
        """The step as training takes it: programs follow each other without a wait."""
        return self._take(self._unwatched, state, ())

    def pieces(self, state: TrainState) -> Any:
        """The same, piece by piece, each waited for and noted by `clock`."""
        return self._take(self.clock, state, ())

    def tasks(self, state: TrainState) -> Task:
        """The tasks `[N, ...]` that the step draws."""
        key = step_keys(state.key[0], state.step[0]).tasks
        return jax.vmap(self.env.sample_task)(jax.random.split(key, self.config.sampling.num_tasks))


def measure(step: Step, repeats: int) -> list[dict[str, Any]]:
    """A row for the whole, one for each piece, and two for the engine."""
    state = step.init()
    step.pieces(state)
    functions: dict[str, Callable[[], Any]] = {"pieces": lambda: step.pieces(state)}
    if isinstance(step.env, PhysicsEnv):
        tasks = step.tasks(step.devices.local(state))
        starts = draw_starts(step.env, jax.random.key(3), tasks, step.config.sampling.num_trajectories)
        batch = step.clock.results["collect"][0]
        support, query = (np.asarray(x.trajectory.action)[0] for x in (batch.support, batch.query))
        alone = [
            open_loop(step.env, tasks, *starts, actions, devices=step.devices)
            for actions in (*np.moveaxis(support, 1, 0), query)
        ]
        functions["engine alone"] = lambda: [run() for run in alone]
    within: list[float] = []

    def watched_step() -> None:
        with engine_clock() as calls:
            jax.block_until_ready(step.whole(state))
        within.append(sum(calls))

    timed = time_in_turn({"whole step": watched_step} | functions, repeats)
    del timed["pieces"]
    whole = timed["whole step"]
    # Both were called once before they count.
    timed |= {piece: seconds[-repeats:] for piece, seconds in step.clock.seconds.items()}
    if any(within):
        timed["engine within the step"] = within[1:]
    simulator = getattr(step.env, "simulator", None)
    return [
        {
            "env": step.config.env.name,
            "simulator": "closed form" if simulator is None else simulator.name,
            "tasks": step.config.sampling.num_tasks,
            "trajectories": step.config.sampling.num_trajectories,
            "horizon": step.env.horizon,
            "devices": step.config.num_devices,
            "part": part,
            "compile_s": step.clock.compiling.get(part, "-"),
            "seconds": median(seconds),
            "share": median(s / w for s, w in zip(seconds, whole, strict=True)),
        }
        for part, seconds in timed.items()
    ]


def main() -> None:
    """Runs the benchmark from the command line."""
    arguments = tyro.cli(Arguments, prog="python -m benchmarks.train_step", description=__doc__)
    start(arguments.num_devices or CPU_DEVICES)
    steps = (Step(config_of(name, arguments)) for name in arguments.env)
    rows = [row for step in steps for row in measure(step, arguments.repeats)]
    report(
        "One outer step of admrl and its parts",
        rows,
        arguments.json,
        bars=("seconds",),
        labels=("env", "simulator", "part"),
        unit="seconds",
    )


if __name__ == "__main__":
    main()
