"""Goes on after the end: a finished run with more methods, more outer steps or another meta-test.

Nothing that is trained already is trained again, and the run that it came from stays as it is.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from admrl_jax.config import MAY_CHANGE, Config, to_dict
from admrl_jax.core.settings import ConfigError, flatten
from admrl_jax.protocol.attack_stages import strength_label
from admrl_jax.runs.artefact import ATTACKERS, KEPT_ATTACKERS, POLICIES, read_attackers
from admrl_jax.runs.checkpoint import hand_on
from admrl_jax.runs.directory import RunError, read_run
from admrl_jax.runs.files import read_text, write_text
from admrl_jax.runs.metrics import KEY_COLUMNS
from admrl_jax.runs.numerics import FILE

TRAINING = ("pretrain", "warmup", "finetune")
"""Stages whose checkpoints always go on."""
STEPS = "schedule.finetune_steps"
STRENGTHS = "eval.strengths"
FOR_ATTACKERS = ("eval.attacker.", "eval.num_adapt_steps")
"""Settings that the attackers of the meta-test are trained with, beside their strengths."""
FOR_RETURNS = ("eval.num_", "eval.seed")
"""Settings that its returns depend on besides."""
FOR_CURVES = ("eval.curve_strength",)
"""Settings that those of the curves depend on besides."""
OF_CURVES = ("curve.", "opponent.")
"""Beginnings of the names of these files."""
METRICS = "metrics.csv"
NEEDED = (METRICS, POLICIES, FILE, "checkpoints")
"""Of a run that is trained."""


def read_trained(source: Path) -> Config:
    """The settings of a run that can be extended.

    Raises:
        RunError: it is not trained, or its checkpoints are gone.
    """
    return read_run(source, NEEDED, "a run directory with its checkpoints")


def changes(saved: Config, wanted: Config) -> dict[str, tuple[object, object]]:
    """Settings that differ and matter, with both values.

    Raises:
        ConfigError: one of them would make what is trained already another thing.
    """
    old, new = flatten(saved), flatten(wanted)
    found = {
        name: (old[name], new[name]) for name in old if name not in MAY_CHANGE and old[name] != new[name]
    }
    for name, (before, now) in found.items():
        if name == "methods":
            if now[: len(before)] != before:  # type: ignore[index]
                words = ", ".join(before)  # type: ignore[arg-type]
                raise ConfigError(f"methods: {', '.join(now)!r} is not accepted; accepted: {words}, and more")
        elif name == STEPS:
            if now < before:  # type: ignore[operator]
                raise ConfigError(f"{name}: {now} is not accepted; accepted: {before} or more")
            every = saved.schedule.snapshot_every
            if before % every:  # type: ignore[operator]
                raise ConfigError(
                    f"{name}: {now} is not accepted; accepted: {before}, which is no multiple of "
                    f"schedule.snapshot_every ({every})"
                )
        elif not name.startswith("eval."):
            raise ConfigError(
                f"{name}: {now} is not accepted; accepted: {before}, as the run has it; what may change is "
                f"methods, {STEPS} and eval.*"
            )
    return found


def extend_run(source: Path, out: Path, config: Config) -> list[str]:
    """Puts what stays of a run into the directory of another, which `--resume` then goes on with.

    Args:
        source: the finished run.
        out: a new directory.
        config: settings of the new run.

    Returns:
        What is kept of it beside the policies: attackers, returns.

    Raises:
        ConfigError: see `changes`.
        RunError: `out` is in use, or a checkpoint is damaged.
        ArtefactError: the attackers are.
    """
    found = changes(read_trained(source), config)
    if not found:
        raise ConfigError("settings: nothing changes; --resume goes on with a run as it is")
    if out.exists() and any(out.iterdir()):
        raise RunError(f"run-dir: {out} is not empty; name another folder")
    trained = next((source / name for name in (ATTACKERS, KEPT_ATTACKERS) if (source / name).is_file()), None)
    if trained is not None:
        read_attackers(trained)
    out.mkdir(parents=True, exist_ok=True)
    before, now = found.get(STRENGTHS, ((), ()))
    # An attacker's random numbers follow from its strength's place among all.
    keeps_attackers = not _any(found, STEPS, *FOR_ATTACKERS) and now[: len(before)] == before  # type: ignore
    # With other strengths the lanes of the checkpoints are others.
    begun = STRENGTHS not in found and not (source / ATTACKERS).is_file()
    for stage in sorted((source / "checkpoints").iterdir()):
        is_attack = stage.name.startswith("attack-")
        if stage.name.startswith(TRAINING) or (is_attack and keeps_attackers and begun):
            hand_on(stage, out / "checkpoints" / stage.name, config)
    if keeps_attackers and trained is not None:
        shutil.copy(trained, out / KEPT_ATTACKERS)
    keeps_returns = keeps_attackers and not _any(found, *FOR_RETURNS)
    if keeps_returns:
        keeps_curves = not _any(found, *FOR_CURVES)
        for path in (source / "returns").glob("*.npz"):
            if keeps_curves or not path.name.startswith(OF_CURVES):
                (out / "returns").mkdir(exist_ok=True)
                shutil.copy(path, out / "returns" / path.name)
    shutil.copy(source / FILE, out / FILE)
    header, *rows = read_text(source / METRICS).splitlines()
    kept = _attack_stages(config) if keeps_attackers else ()
    stages = [row.split(",")[KEY_COLUMNS.index("stage")] for row in rows]
    rows = [
        r for r, stage in zip(rows, stages, strict=True) if not stage.startswith("attack-") or stage in kept
    ]
    write_text(out / METRICS, "\n".join([header, *rows]) + "\n")
    # Last: until it is there, the directory holds no run.
    write_text(out / "config.json", json.dumps(to_dict(config), indent=2) + "\n")
    has_attackers = (out / KEPT_ATTACKERS).is_file() or any((out / "checkpoints").glob("attack-*"))
    return ["attackers"] * has_attackers + ["returns"] * (out / "returns").is_dir()


def _attack_stages(config: Config) -> set[str]:
    """What `metrics.csv` calls the attackers of a run."""
    attacks = {attack for method in config.methods for attack in config.eval.attacks_on(method)}
    return {f"attack-{attack}-{strength_label(s)}" for attack in attacks for s in config.eval.strengths}


def _any(names: Iterable[str], *prefixes: str) -> bool:
    return any(name.startswith(prefixes) for name in names)
