"""What an attack on saved policies is: its plan, its cells, and the folder that holds one plan only."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from admrl_jax.attacks.registry import attack_spec
from admrl_jax.attacks.threat import SIDES
from admrl_jax.config import UNITS
from admrl_jax.core.settings import ConfigError
from admrl_jax.runs.artefact import check_known, digest, load_policy, read_policies
from admrl_jax.runs.directory import RunError
from admrl_jax.runs.files import write_text
from admrl_jax.suites import SUITES, Suite

VERSION = 1
"""Of how attackers learn and are chosen. Whoever changes that, so that other returns come out, adds one."""


def effort_of(suite: Suite) -> str:
    """Digest of what a suite does: equal ones may go on with each other's results, and be compared."""
    configs = [
        dataclasses.replace(attack_spec(member.attack).config(), **dict(member.settings))
        for member in suite.members
    ]
    return hashlib.sha256(repr((VERSION, suite, configs)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class AttackPlan:
    """What is attacked and how hard; decides every number.

    Attributes:
        source: run directory or `policies.npz`.
        suite: name of the suite.
        methods: victims.
        seeds: of the victims.
        radii: L2 radii.
        units: of the radii, one of `UNITS`.
        side: data under attack, one of `SIDES`.
        seed: of the attack.
        policies: digest of the artefact.
        effort: `effort_of` the suite, which another version of the code may have changed.
        transfer_from: folders of other attacks, whose attackers are tried on these victims.
    """

    source: str
    suite: str
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    radii: tuple[float, ...]
    units: str
    side: str
    seed: int
    policies: str
    effort: str
    transfer_from: tuple[str, ...] = ()


class Cell(NamedTuple):
    """One victim at one radius."""

    method: str
    seed: int
    radius: float

    @property
    def stem(self) -> str:
        """Of its files."""
        return f"{self.method}-{self.seed}-{self.radius:g}"

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}, radius {self.radius:g}"


def cells_of(plan: AttackPlan) -> Iterator[Cell]:
    """All cells, radii from small to large."""
    for method in plan.methods:
        for seed in plan.seeds:
            for radius in sorted(plan.radii):
                yield Cell(method, seed, radius)


def make_plan(
    source: Path,
    *,
    suite: str = "standard",
    methods: Sequence[str] = (),
    seeds: Sequence[int] = (),
    radii: Sequence[float] = (),
    units: str = "",
    side: str = "both",
    seed: int = 0,
    transfer_from: Sequence[str] = (),
) -> AttackPlan:
    """A plan for an artefact; what is not given is as in its run.

    Raises:
        ArtefactError: there is no such artefact, or it is damaged.
        ConfigError: something is not accepted, or not in the artefact.
    """
    arrays = read_policies(source)
    known = sorted({name.split("/")[1] for name in arrays if name.startswith("policy/")})
    trained = load_policy(source, known[0])
    found = tuple(int(x) for x in arrays["seeds"])
    default = [method for method in trained.config.methods if method in known]
    chosen = {
        "methods": (tuple(methods) or tuple(default), tuple(known)),
        "seeds": (tuple(seeds) or found, found),
        "suite": ((suite,), tuple(SUITES)),
        "side": ((side,), tuple(SIDES)),
        "units": ((units or trained.config.units,), tuple(UNITS)),
    }
    for name, (values, accepted) in chosen.items():
        check_known(name, values, accepted)
    radii = tuple(sorted(set(radii))) or trained.config.eval.strengths
    for radius in radii:
        if not (np.isfinite(radius) and radius > 0):
            raise ConfigError(f"radii: {radius!r} is not accepted; accepted: numbers above 0")
    return AttackPlan(
        source=str(source),
        suite=suite,
        methods=chosen["methods"][0],
        seeds=chosen["seeds"][0],
        radii=radii,
        units=chosen["units"][0][0],
        side=side,
        seed=seed,
        policies=digest(arrays),
        effort=effort_of(SUITES[suite]),
        transfer_from=tuple(map(str, transfer_from)),
    )


MAY_CHANGE = ("source", "methods", "seeds", "radii", "transfer_from")
"""An attack may be given more of these, and its policies may be moved; what is there is kept."""


def set_aside(folder: Path, plan: AttackPlan) -> None:
    """Makes way for a suite: what another one, or an older one, has found moves to `<folder>_<its suite>`.

    Raises:
        RunError: that is taken, or the folder cannot be read.
    """
    try:
        path = folder / "plan.json"
        if not path.exists():
            return
        found = json.loads(path.read_text())
        if (found["suite"], found["effort"]) == (plan.suite, plan.effort):
            return
        version = "" if found["suite"] != plan.suite else f"_{found['effort'][:6]}"
        place = folder.with_name(f"{folder.name}_{found['suite']}{version}")
        if place.exists():
            raise RunError(
                f"out: {folder} holds the suite {found['suite']}, and so does {place}; remove one of them"
            )
        folder.rename(place)
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"out: {folder} cannot be written or read ({error})") from error


def claim(folder: Path, plan: AttackPlan) -> None:
    """Writes the plan of an attack, or refuses a folder that holds another.

    Raises:
        RunError: it does, or cannot be written.
    """
    path, wanted = folder / "plan.json", asdict(plan)
    try:
        if path.exists():
            found = json.loads(path.read_text())
            odd = [name for name in wanted if name not in MAY_CHANGE and found.get(name) != wanted[name]]
            if odd:
                words = ", ".join(f"{name}: {found.get(name)} -> {wanted[name]}" for name in odd)
                raise RunError(f"out: {folder} holds another attack ({words}); name another --out")
        elif folder.exists() and any(folder.iterdir()):
            raise RunError(f"out: {folder} is not empty and holds no attack; name another --out")
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=1) + "\n")
    except (OSError, ValueError) as error:
        raise RunError(f"out: {folder} cannot be written or read ({error})") from error
