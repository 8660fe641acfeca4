"""Methods of several attacks side by side: what each keeps, and how much more than without a defence."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from admrl_jax.defences.registry import UNDEFENDED
from admrl_jax.report.attacked import Attacked
from admrl_jax.stats.claims import Effect, effect_of


class Difference(NamedTuple):
    """A method minus the undefended one, paired by seed.

    Attributes:
        run: name of the method's run.
        kind: of the environment, as in `kind_of`.
        method: label of the method.
        base: label of the undefended one.
        radius: of the attack.
        clean: difference of the clean returns.
        worst: difference under the worst attackers.
    """

    run: str
    kind: str
    method: str
    base: str
    radius: float
    clean: Effect
    worst: Effect


def points(name: str, attacked: Attacked) -> list[dict[str, Any]]:
    """A row per method, seed and radius: clean return, the worst of the suite, whether the checks hold.

    Args:
        name: of the run.
        attacked: its attack.
    """
    failed = {check.victim for check in attacked.checks() if not check.holds}
    return [
        {
            "run": name,
            "method": attacked.label(method),
            "seed": seed,
            "radius": radius,
            "clean": attacked.mean(method, seed, 0),
            "worst": attacked.mean(method, seed, radius),
            "checks": "fail" if attacked.victim(method, seed) in failed else "hold",
        }
        for method in attacked.methods
        for seed in attacked.seeds
        for radius in attacked.radii
    ]


def differences(
    attacks: Sequence[tuple[str, Attacked]], bases: Sequence[tuple[str, Attacked]] = ()
) -> list[Difference]:
    """Every method, run and radius against the undefended method of the same seeds.

    The two may be of several runs of one environment, under equal assumptions.

    Args:
        attacks: by name of the run; a run's seeds may come in several of one name.
        bases: where the undefended method is looked for first; then in `attacks`.
    """
    undefended: dict[tuple, dict[str, Any]] = {}
    for row in _rows([*bases, *attacks]):
        if row["defence"] == UNDEFENDED:
            undefended.setdefault((row["kind"], row["radius"], row["seed"]), row)
    compared: dict[tuple, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for row in _rows(attacks):
        base = undefended.get((row["kind"], row["radius"], row["seed"]))
        if base is not None and row["defence"] not in (None, UNDEFENDED):
            compared.setdefault((row["run"], row["method"], row["radius"]), []).append((row, base))
    return [
        Difference(
            run,
            pairs[0][0]["kind"],
            method,
            pairs[0][1]["method"],
            radius,
            *(effect_of([row[part] - base[part] for row, base in pairs]) for part in ("clean", "worst")),
        )
        for (run, method, radius), pairs in compared.items()
    ]


def kind_of(attacked: Attacked) -> str:
    """What can be compared: the environment, and whether it assumes something that attacks cannot move."""
    return attacked.results["env"] + (", with memory" if attacked.results.get("assumption") else "")


def _rows(attacks: Sequence[tuple[str, Attacked]]) -> list[dict[str, Any]]:
    """All points, with what they can be compared with."""
    found = []
    for name, attacked in attacks:
        # A victim that is no method, such as a pre-trained policy, has no defence.
        methods = attacked.results["methods"]
        defences = {attacked.label(method): methods[method].get("defence") for method in attacked.methods}
        found += [
            row | {"kind": kind_of(attacked), "defence": defences[row["method"]]}
            for row in points(name, attacked)
        ]
    return found
