"""A stage: lanes that take the same steps, with checkpoints, metrics, progress and a way to go on."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from admrl_jax.core.types import Metrics, Params
from admrl_jax.protocol.lanes import LanePrograms, choose_lanes, merge, merge_arrays, split
from admrl_jax.protocol.session import Session, check_budget
from admrl_jax.runs import hosts
from admrl_jax.runs.checkpoint import StageCheckpoints
from admrl_jax.runs.signals import Interrupted
from admrl_jax.training import bad_steps

SHOWN = {"pre": "train/pre_return", "post": "train/post_return", "kl": "train/kl"}
"""Metrics in the progress line."""

Step = Callable[[LanePrograms, Any, Any], tuple[Any, Metrics]]
"""`(programs, state, fixed) -> (state, metrics)` of one block of lanes, by one or more programs."""


class Diverged(Exception):  # noqa: N818 - named like `Interrupted`
    """Numbers were not finite for too many steps in a row; the message is for the user."""


class Stage(NamedTuple):
    """What a stage computes.

    Attributes:
        method: what is trained or attacked.
        name: in `metrics.csv`.
        num_steps: steps of every lane.
        first_step: number of the first one in `metrics.csv`, from 0.
        state: what the steps carry, leading axis the lanes.
        fixed: what they only read, leading axis the lanes, or `()`.
        step: see `Step`.
        lane_rows: for each stage name in `metrics.csv`, its lanes in the order of seeds.
        snapshot: `(state) -> Params` of what is kept every `snapshot_every` steps; None keeps nothing.
    """

    method: str
    name: str
    num_steps: int
    first_step: int
    state: Any
    fixed: Any
    step: Step
    lane_rows: dict[str, list[int]]
    snapshot: Callable[[Any], Params] | None = None

    @property
    def label(self) -> str:
        """Name of the stage and its method, for progress and messages."""
        return self.name if self.method == self.name else f"{self.method}: {self.name}"

    @property
    def num_lanes(self) -> int:
        """Seeds, or attackers."""
        return jax.tree.leaves(self.state)[0].shape[0]

    def folder(self, directory: Path) -> Path:
        """Where its checkpoints are."""
        return directory / "checkpoints" / f"{self.name}-{self.method}"


def run_stage(session: Session, stage: Stage) -> tuple[Any, Params]:
    """Takes the stage's steps, from its newest checkpoint on, to its end.

    Returns:
        `(state, snapshots)`: leading axes the lanes, and the snapshot, then the lanes.

    Raises:
        Interrupted: a signal asked for it; the state is saved.
        Diverged: numbers were not finite for too long.
    """
    devices = session.devices
    with StageCheckpoints(stage.folder(session.directory), session.config) as checkpoints:
        done = hosts.from_first(max(checkpoints.starts, default=-1))
        state, snapshots = devices.place((stage.state, empty_snapshots(session, stage, max(done, 0))))
        if done > 0:
            state, snapshots = checkpoints.load(done, (state, snapshots))
        if done < stage.num_steps:
            state, snapshots = _Loop(session, stage, checkpoints, done).run(state, snapshots)
    kept = [devices.local(snapshot) for snapshot in snapshots]
    return devices.local(state), jax.tree.map(lambda *x: jnp.stack(x), *kept) if kept else ()


def empty_snapshots(session: Session, stage: Stage, done: int) -> tuple[Params, ...]:
    """Room for the snapshots that a stage has kept after `done` steps.

    No more than those, so that a stage can be made longer once it is done.
    """
    if stage.snapshot is None:
        return ()
    every = session.config.schedule.snapshot_every
    count = done // every + (done == stage.num_steps and done % every > 0)
    return (jax.tree.map(jnp.zeros_like, stage.snapshot(stage.state)),) * count


class _Loop:
    """The steps of one stage, chunk by chunk."""

    def __init__(self, session: Session, stage: Stage, checkpoints: StageCheckpoints, done: int):
        self._session, self._stage, self._checkpoints = session, stage, checkpoints
        self._schedule = session.config.schedule
        self._done = done
        self._streak = np.zeros(stage.num_lanes, int)

    def run(self, state: Any, snapshots: tuple[Params, ...]) -> tuple[Any, tuple[Params, ...]]:
        """From the state after `done` steps to the end."""
        session, stage = self._session, self._stage
        lanes = self._choose_lanes(state)
        fixed = session.devices.place(stage.fixed)
        blocks = split(state, lanes.at_once)
        fixed_blocks = split(fixed, lanes.at_once) if jax.tree.leaves(fixed) else [()] * len(blocks)
        for name in stage.lane_rows:
            session.journal.log.rewind(stage.method, name, stage.first_step + self._done)
        with session.journal.stage(stage.label, stage.num_steps, self._done) as progress:
            while self._done < stage.num_steps:
                start = time.monotonic()
                size = min(self._schedule.chunk_steps, stage.num_steps - self._done)
                blocks, metrics = self._take(lanes, blocks, fixed_blocks, size)
                seconds = time.monotonic() - start
                self._record(metrics)
                self._done += size
                state = merge(blocks)
                snapshots = self._with_snapshot(snapshots, state)
                stop_signal = session.stop_signal()
                self._save((state, snapshots), now=bool(stop_signal))
                rate = metrics["train/env_steps"].sum() / seconds
                shown = {k: float(metrics[v].mean()) for k, v in SHOWN.items() if v in metrics}
                progress.update(self._done, {**shown, "env steps/s": f"{rate:,.0f}"})
                self._count_bad(metrics)
                if stop_signal:
                    raise Interrupted(stop_signal)
        return state, snapshots

    def _choose_lanes(self, state: Any) -> LanePrograms:
        session, stage = self._session, self._stage

        def run_first(lanes: LanePrograms) -> None:
            fixed = split(stage.fixed, lanes.at_once)[0] if jax.tree.leaves(stage.fixed) else ()
            stage.step(lanes, split(state, lanes.at_once)[0], session.devices.place(fixed))

        return choose_lanes(session.programs, stage.num_lanes, run_first, session.config.lanes)

    def _take(
        self, lanes: LanePrograms, blocks: list[Any], fixed: Sequence[Any], size: int
    ) -> tuple[list[Any], dict[str, np.ndarray]]:
        """A chunk of steps of all blocks; metrics `[L, size]`."""
        new_blocks, rows = [], []
        for block, constant in zip(blocks, fixed, strict=True):
            taken = []
            for _ in range(size):
                block, metrics = self._stage.step(lanes, block, constant)
                taken.append(metrics)
            new_blocks.append(block)
            taken = jax.device_get(self._session.devices.local(taken))
            rows.append({name: np.stack([row[name] for row in taken], axis=-1) for name in taken[0]})
        return new_blocks, merge_arrays(rows)

    def _save(self, pair: tuple[Any, tuple[Params, ...]], *, now: bool) -> None:
        is_due = self._done % self._schedule.checkpoint_every == 0 or self._done == self._stage.num_steps
        if is_due or now:
            self._checkpoints.save(self._done, jax.tree.map(jnp.asarray, pair))

    def _with_snapshot(self, snapshots: tuple[Params, ...], state: Any) -> tuple[Params, ...]:
        """Adds what is kept of the state, where that is due."""
        every, stage = self._schedule.snapshot_every, self._stage
        if stage.snapshot is None or (self._done % every and self._done != stage.num_steps):
            return snapshots
        return (*snapshots, stage.snapshot(state))

    def _record(self, metrics: dict[str, np.ndarray]) -> None:
        stage = self._stage
        check_budget(metrics["attack/budget_excess"], stage.label)
        for name, lanes in stage.lane_rows.items():
            part = {key: value[lanes] for key, value in metrics.items()}
            first = stage.first_step + self._done + 1
            self._session.journal.log.append(stage.method, name, first, self._session.config.seeds, part)

    def _count_bad(self, metrics: dict[str, np.ndarray]) -> None:
        """Adds a chunk to the number of bad steps in a row of every lane.

        Raises:
            Diverged: there were too many.
        """
        limit, stage = self._schedule.max_bad_steps, self._stage
        for bad in np.asarray(bad_steps(metrics)).T:  # type: ignore[arg-type]
            self._streak = np.where(bad, self._streak + 1, 0)
            if not np.any(self._streak >= limit):
                continue
            lane = int(np.argmax(self._streak >= limit))
            number = next(rows.index(lane) for rows in stage.lane_rows.values() if lane in rows)
            last = self._checkpoints.latest_step
            raise Diverged(
                f"{stage.label}: step {stage.first_step + self._done}, "
                f"seed {self._session.config.seeds[number]}: numbers were not finite for {limit} outer "
                "steps in a row (schedule.max_bad_steps); train/diverged, train/skipped and "
                "adversary/skipped in metrics.csv say where. No such update is ever taken; last good "
                "checkpoint: "
                + ("none in this stage" if last is None else str(self._checkpoints.directory / str(last)))
            )
