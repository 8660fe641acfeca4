"""Suites: which attackers are tried, with which settings, and how much is spent on each."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from admrl_jax.attacks.registry import attack_spec
from admrl_jax.attacks.threat import SIDES
from admrl_jax.core.settings import ConfigError


@dataclass(frozen=True, kw_only=True)
class Member:
    """An attacker of a suite."""

    name: str
    """In tables; every member has its own."""
    attack: str
    """Registered name."""
    settings: tuple[tuple[str, Any], ...] = ()
    """Settings of the attack that differ from its defaults."""
    starts: int = 1
    """Attackers of this kind, from as many starts."""
    trial_updates: int = 0
    """Of every start, after which the best go on; 0 lets all of them go on."""
    kept: int = 2
    """Starts that go on after the trial."""
    updates: int = 1
    """Of those that go on, at most: training ends where more does no more harm."""
    goes_on_from: tuple[str, ...] = ()
    """Members whose best attackers this one starts from; their parameters must be of the same shape."""
    sides: tuple[str, ...] = tuple(SIDES)
    """For which data under attack it is made."""
    is_drawn: bool = False
    """One update of every start is all, so that more effort is more starts."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Members, and how much is spent on them. Episodes per task are those of the victim's setup."""

    members: tuple[Member, ...]
    num_tasks: int = 10
    """Per update of an attacker."""
    tasks_together: int = 4
    """Tasks that are judged in one call; a divisor of the four below."""
    rank_tasks: int = 4
    """On which starts are told apart."""
    validation_tasks: int = 12
    """On which the best of every member is chosen."""
    finalists: int = 5
    """Members, the strongest by that, among whom the worst is chosen."""
    final_tasks: int = 40
    """On which it is: the lowest of many noisy means is low by luck, too."""
    test_tasks: int = 40
    """On which the chosen ones are reported."""


def check_suite(suite: Suite) -> None:
    """Refuses suites that cannot be run.

    Raises:
        ConfigError: naming the member or setting and what is accepted.
    """
    for name in ("rank_tasks", "validation_tasks", "final_tasks", "test_tasks"):
        count, together = getattr(suite, name), suite.tasks_together
        if count % together or count < together:
            raise ConfigError(f"{name}: {count} is not accepted; accepted: multiples of {together}")
    names = [member.name for member in suite.members]
    for number, member in enumerate(suite.members):
        spec = attack_spec(member.attack)
        known = {field.name for field in dataclasses.fields(spec.config)}
        for name, _ in member.settings:
            if name not in known:
                accepted = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"{member.name}: {name!r} is no setting of it; accepted: {accepted}")
        if member.is_drawn and member.trial_updates + member.updates > 1:
            raise ConfigError(f"{member.name}: is_drawn: True is not accepted with more than one update")
        if names.count(member.name) > 1:
            raise ConfigError(f"members: {member.name!r} is there twice; names must differ")
        for name in member.goes_on_from:
            if name not in names[:number]:
                raise ConfigError(f"{member.name}: goes_on_from: {name!r} is no member before it")


def untrained(*attacks: str) -> tuple[Member, ...]:
    """Members that learn nothing, by their attacks' names."""
    return tuple(Member(name=name, attack=name) for name in attacks)


OFFLINE = ("fit query", "fit both", "fit adaptation")
"""Generators that are fitted to turn actions against themselves on clean episodes; all read the task."""
UNDER_ATTACK = "fit under attack"
"""The same on episodes under attack, through the adaptation, towards the policy of another task."""
REVERSED = "fit under attack, reversed"
"""That one against the policy's own actions only."""
PLAIN = "plain fit under attack"
"""The first without the task, as adGAN's generator."""
WITH_SUPPORT = ("both", "support")


def offline_fits(starts: tuple[int, ...], steps: int, updates: int) -> tuple[Member, ...]:
    """Counter-action fits on clean episodes: query states, support states too, through the adaptation.

    Args:
        starts: of each; the last ones may be left out.
        steps: Adam steps per update.
        updates: of each start that goes on.
    """
    settings = (
        (("through", "query"),),
        (("through", "both"),),
        (("through", "adaptation"), ("num_samples", 1000), ("learning_rate", 1e-2)),
    )
    return tuple(
        Member(
            name=name,
            attack="counter_action",
            settings=(*mine, ("knows_task", True), ("num_steps", steps)),
            starts=count,
            trial_updates=1,
            updates=updates,
            sides=tuple(SIDES) if name == OFFLINE[0] else WITH_SUPPORT,
        )
        for name, mine, count in zip(OFFLINE, settings, starts, strict=False)
    )


def fits_under_attack(
    starts: tuple[int, ...], steps: int, updates: int, *, trial: int = 0, goes_on_from: tuple[str, ...] = ()
) -> tuple[Member, ...]:
    """Counter-action fits through the adaptation on episodes under attack.

    Args:
        starts: of `UNDER_ATTACK`, `REVERSED` and `PLAIN`; the last ones may be left out.
        steps: Adam steps per update.
        updates: of each start that goes on.
        trial: updates of every start before that, after which half of them go on.
        goes_on_from: fits that the first two start from.
    """
    names = (UNDER_ATTACK, REVERSED, PLAIN)
    return tuple(
        Member(
            name=name,
            attack="counter_action",
            settings=(
                ("through", "adaptation"),
                ("under_attack", True),
                ("target", "opposite" if name == REVERSED else "other_task"),
                ("num_samples", 1000),
                ("learning_rate", 1e-2),
                ("num_steps", steps),
                ("knows_task", name != PLAIN),
            ),
            starts=count,
            trial_updates=trial,
            kept=max(1, count // 2) if trial else count,
            updates=updates,
            goes_on_from=() if name == PLAIN else goes_on_from,
            sides=WITH_SUPPORT,
        )
        for name, count in zip(names, starts, strict=False)
    )


def generators(starts: int, updates: int) -> tuple[Member, ...]:
    """Generators trained on the return that go on from the fits: through the adaptation, or after it only."""
    common = {"attack": "pipeline", "starts": starts, "updates": updates}
    query, fits = (("side", "query"),), (*OFFLINE, UNDER_ATTACK, REVERSED)
    return (
        Member(name="pipeline", goes_on_from=fits, sides=WITH_SUPPORT, **common),
        Member(name="generator", settings=query, goes_on_from=OFFLINE[:1], sides=("query",), **common),
    )


def missteps(starts: int) -> tuple[Member, ...]:
    """Attacks on the step of adaptation: on its direction, on its signal, on both."""
    variants = (("misstep", 1.0, 0.0), ("misstep, spread", 0.0, 1.0), ("misstep, both", 1.0, 2.0))
    return tuple(
        Member(
            name=name,
            attack="misstep",
            settings=(("against", against), ("spread", spread)),
            starts=starts,
            sides=WITH_SUPPORT,
            is_drawn=True,
        )
        for name, against, spread in variants
    )


SIMPLE = untrained(
    "l2_noise", "corner_noise", "stuck_sensor", "sensor_dropout", "sensor_bias", "sensor_delay"
)
GRADIENT = (
    *untrained("fgsm", "pgd", "pgd_linf", "pgd_counter"),
    Member(name="pgd 10", attack="pgd", settings=(("steps", 10), ("step_share", 0.3))),
    Member(name="pgd_counter 10", attack="pgd_counter", settings=(("steps", 10), ("step_share", 0.3))),
)
QUICK = Suite(
    members=(
        *untrained("l2_noise", "sensor_bias", "fgsm", "pgd", "pgd_counter"),
        *offline_fits((4,), 60, 2),
        *fits_under_attack((2,), 40, 6),
        Member(name="black box", attack="black_box", updates=12),
        *missteps(1)[::2],
    ),
    num_tasks=4,
    validation_tasks=8,
    finalists=3,
    final_tasks=20,
    test_tasks=20,
)
STANDARD = Suite(
    members=(
        *SIMPLE,
        *GRADIENT,
        Member(name="snoop", attack="snoop", starts=2),
        Member(name="critic", attack="critic", starts=2),
        *missteps(2),
        *offline_fits((6, 24, 6), 60, 3),
        *fits_under_attack((8, 4, 2), 40, 20, trial=4, goes_on_from=OFFLINE[1:]),
        Member(name="black box", attack="black_box", updates=20),
        Member(name="adgan", attack="adgan", starts=2, updates=10, goes_on_from=(PLAIN,)),
        Member(name="actor", attack="actor", starts=2, updates=10),
        Member(name="director", attack="director", starts=2, updates=10),
        *generators(2, 20),
    ),
    num_tasks=8,
)


def with_twice_the_effort(member: Member) -> Member:
    """A member with twice its starts, six at least, and its updates, if there is more than one."""
    if attack_spec(member.attack).make_trainer is None:
        return member
    updates = 2 * member.updates if member.updates > 1 else 1
    return dataclasses.replace(member, starts=max(6, 2 * member.starts), updates=updates)


CLAIM = dataclasses.replace(
    STANDARD,
    members=(
        *map(with_twice_the_effort, STANDARD.members),
        Member(name="adgan, all radii", attack="adgan_all_radii", starts=6, updates=30),
    ),
    validation_tasks=20,
    finalists=8,
    final_tasks=100,
    test_tasks=100,
)
SUITES = {"quick": QUICK, "standard": STANDARD, "claim": CLAIM}
"""By effort."""
