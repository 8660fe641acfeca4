"""The suite on a toy whose worst attack is known: it finds it, and does not lose it again."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from homing import INPUTS, META_PARAMS, SETUP

from admrl_jax.attacks import registry
from admrl_jax.attacks.base import AttackSpec, NoSettings, memoryless
from admrl_jax.attacks.generator import GeneratorParams
from admrl_jax.attacks.registry import CLEAN
from admrl_jax.attacks.threat import Units, make_threat
from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.navigation import Navigation2D, NavigationConfig
from admrl_jax.judging import BLIND, Case, keys_of, radius_within
from admrl_jax.stats.checks import expected_lowest
from admrl_jax.suite import MIN_UPDATES, SuiteRunner, attack_suite, finalists
from admrl_jax.suites import SUITES, Member, Suite, check_suite, untrained

RADIUS = 0.8
FIT = Member(
    name="fit",
    attack="counter_action",
    settings=(("hidden_sizes", (8,)), ("learning_rate", 0.03), ("num_steps", 10)),
    starts=3,
    trial_updates=1,
    kept=2,
    updates=16,
)
GAN = Member(
    name="gan",
    attack="adgan",
    settings=(("hidden_sizes", (8,)), ("num_minibatches", 4), ("generator_lr", 0.02), ("gan_weight", 0.0)),
    starts=2,
    updates=10,
    goes_on_from=("fit",),
)
SUITE = Suite(
    members=(*untrained("l2_noise", "pgd"), FIT, GAN),
    num_tasks=4,
    tasks_together=2,
    rank_tasks=2,
    finalists=2,
    final_tasks=2,
    validation_tasks=4,
    test_tasks=6,
)
CASE = Case(META_PARAMS, jax.random.key(3), RADIUS, inputs=INPUTS)


@pytest.fixture(scope="module")
def runner() -> SuiteRunner:
    """One for all tests, as its programs are the expensive part."""
    return SuiteRunner(SUITE, SETUP)


@pytest.fixture(scope="module")
def members(runner: SuiteRunner):
    """What the members achieve."""
    return runner.run(CASE)


def test_learned_attackers_are_the_worst_and_all_is_accounted_for(runner: SuiteRunner, members) -> None:
    assert list(members) == ["l2_noise", "pgd", "fit", "gan"]
    noise, clean = members["l2_noise"].best.left, runner.judge.clean(CASE)
    first, second = finalists(members, 2)
    worst = members[first].best
    lefts = sorted({result.best.left for result in members.values()})
    assert [worst.left, members[second].best.left] == lefts[:2], "the strongest two that differ"
    # A constant shift costs |d|^2 a step; noise of that size a third of it.
    assert worst.left < 1.5 * noise < noise < clean
    assert worst.member in ("fit", "gan")
    for name in ("fit", "gan"):
        result = members[name]
        assert result.best.validation.shape == (4, 12)
        assert 0 < len(result.effort) <= {"fit": 16, "gan": 10}[name]
    assert members["fit"].starts.shape == (3,) and members["gan"].starts.shape == (2 * 3 + 1,)
    # Clean batches serve all starts; others collect their own. 4 tasks, 12 episodes, 2 phases, 10 steps.
    each = 4 * 12 * 2 * 10
    assert members["fit"].env_steps == (1 + len(members["fit"].effort)) * each
    assert members["gan"].env_steps == 2 * len(members["gan"].effort) * each
    assert members["pgd"].env_steps == 0 and len(members["pgd"].effort) == 0


def test_a_member_that_goes_on_does_not_lose_what_it_was_given(members) -> None:
    assert members["gan"].best.left <= members["fit"].best.left + 1e-4


def test_training_that_is_flat_ends_early(runner: SuiteRunner) -> None:
    # Without a radius nothing helps.
    nothing = CASE._replace(radius=0.0)
    result = runner.run_member(nothing, FIT, clean=runner.judge.clean(nothing))
    assert len(result.effort) == MIN_UPDATES < FIT.updates


def test_attackers_from_elsewhere_are_judged_as_they_are_and_what_is_done_is_kept(
    runner: SuiteRunner, members
) -> None:
    best = members["fit"].best
    done = {name: result for name, result in members.items() if name != "gan"}
    asked = []
    again = runner.run(
        CASE,
        seeds={"gan": [("elsewhere", best.params)]},
        done=done,
        on_member=lambda result: asked.append(result.best.member),
    )
    assert asked == ["gan"] and again["fit"] is members["fit"]
    assert again["gan"].best.left <= best.left + 1e-4
    judged = runner.judge_others(CASE, [best, members["gan"].best, members["l2_noise"].best])
    for mine, theirs in zip(judged, (best, members["gan"].best, members["l2_noise"].best), strict=True):
        np.testing.assert_allclose(mine.validation, theirs.validation, rtol=1e-4, atol=1e-4)


def test_sides(runner: SuiteRunner, members) -> None:
    best = members["fit"].best
    # This policy hardly adapts: what happens to its support data does not matter.
    left = {
        side: runner.judge.validation(CASE._replace(side=side), "fit", [best.params]).mean()
        for side in ("both", "query", "support")
    }
    assert left["both"] == pytest.approx(left["query"], rel=1e-3)
    assert left["support"] == pytest.approx(runner.judge.clean(CASE), rel=1e-3)


def test_whoever_breaks_the_budget_has_not_attacked(monkeypatch: pytest.MonkeyPatch) -> None:
    threat = make_threat(label="", norm="l2", strength="", knowledge="none")
    cheat = memoryless(lambda params, key, obs, scene, budget: obs + 2 * budget.radius, threat)
    spec = AttackSpec("cheat", threat, "", NoSettings, lambda config, victim: cheat)
    monkeypatch.setitem(registry.ATTACKS, "cheat", spec)
    suite = dataclasses.replace(SUITE, members=untrained("l2_noise", "cheat", "gaussian"))
    result = attack_suite(SETUP, META_PARAMS, CASE.key, radius=RADIUS, suite=suite, inputs=INPUTS)
    # Noise that no radius bounds takes no part at all.
    assert list(result.members) == ["l2_noise", "cheat"] and result.worst == "l2_noise"
    assert np.all(np.isinf(result.members["cheat"].best.validation))
    assert result.attacked.shape == result.clean.shape == (6, 12)
    assert result.attacked.mean() < result.clean.mean()


def test_the_worst_attacker_is_trained_on_while_it_gains(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = dataclasses.replace(
        SUITE, members=(dataclasses.replace(FIT, starts=1, trial_updates=0, updates=3),)
    )
    attack = functools.partial(attack_suite, SETUP, META_PARAMS, CASE.key, radius=RADIUS, inputs=INPUTS)
    # Never flat: it goes on as long as that helps.
    monkeypatch.setattr("admrl_jax.suite.is_flat", lambda returns, clean: False)
    result = attack(suite=suite)
    names = [f"fit, continued {number}" for number in (1, 2, 3)]
    assert list(result.members)[:2] == ["fit", names[0]]
    assert list(result.members) == ["fit", *names][: len(result.members)] == list(result.finals)
    means = [float(result.finals[name].mean()) for name in result.members]
    assert means[:-1] == sorted(means[:-1], reverse=True), "each went on from a stronger one"
    assert len(result.members) == 4 or means[-1] >= means[-2], "or the last found nothing"
    assert result.finals[result.worst].mean() == min(means)
    lengths = [len(member.effort) for member in result.members.values()]
    assert lengths[1] == MIN_UPDATES and all(b == 2 * a for a, b in itertools.pairwise(lengths[1:]))
    monkeypatch.setattr("admrl_jax.suite.is_flat", lambda returns, clean: True)
    assert list(attack(suite=suite).members) == ["fit"]


def test_of_one_update_more_starts_are_more_effort(monkeypatch: pytest.MonkeyPatch) -> None:
    single = Member(name="misstep", attack="misstep", starts=3, is_drawn=True)
    suite = dataclasses.replace(SUITE, members=(single,))
    runner = SuiteRunner(suite, SETUP)
    clean = runner.judge.clean(CASE)
    first = runner.run_member(CASE, single, clean=clean)
    assert len(np.unique(first.starts)) == 3, "each learned from episodes of its own"
    np.testing.assert_allclose(first.effort, expected_lowest(first.starts))
    assert first.effort[-1] == pytest.approx(first.best.left)
    # 4 tasks, 12 episodes, 2 phases, 10 steps; every start has collected its own.
    assert first.env_steps == 3 * 4 * 12 * 2 * 10
    more = runner.run_further(CASE, "misstep", first, clean=clean, number=1)
    # Six starts; that which they were to better is judged beside them, and no higher number counts.
    assert more.starts.shape == (7,) and more.effort.shape == (6,)
    assert more.starts[-1] == pytest.approx(first.best.left) and more.effort.max() <= first.best.left + 1e-6
    assert more.best.left <= first.best.left + 1e-6
    assert not np.isin(more.starts[:6], first.starts).any()
    with pytest.raises(ConfigError, match="misstep: is_drawn: True is not accepted with more than one"):
        check_suite(dataclasses.replace(suite, members=(dataclasses.replace(single, updates=2),)))


@pytest.mark.parametrize("name", ["snoop", "misstep"])
def test_starts_of_an_attacker_that_learns_offline_differ(name: str) -> None:
    """Whose starts are alike is tried once, however many it is said to have."""
    member = next(member for member in SUITES["claim"].members if member.name == name)
    suite = dataclasses.replace(SUITE, members=(dataclasses.replace(member, starts=2, kept=2),))
    runner = SuiteRunner(suite, SETUP)
    training = runner.trainings[name]
    states = training.start(CASE.key, [RADIUS] * 2, inputs=INPUTS)
    states, _ = training.step(states, META_PARAMS, CASE.key, 0)
    pairs = [np.asarray(x) for x in jax.tree.leaves(jax.vmap(training.trainer.params)(states.trainer))]
    assert any(np.any(first != second) for first, second in pairs)


@pytest.mark.parametrize("is_voided", [False, True])
def test_whoever_only_cuts_episodes_short_has_not_attacked(
    is_voided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    threat = make_threat(label="", norm="l2", strength="", knowledge="none")

    def perturb(params, key, obs, scene, budget):
        return jnp.where(is_voided & scene.is_query & (obs[0] > 0), jnp.nan, obs)

    spec = AttackSpec("short", threat, "", NoSettings, lambda config, victim: memoryless(perturb, threat))
    monkeypatch.setitem(registry.ATTACKS, "short", spec)
    runner = SuiteRunner(dataclasses.replace(SUITE, members=untrained("l2_noise", "short")), SETUP)
    left = runner.judge.validation(CASE, "short", [()])
    assert np.all(np.isinf(left)) == is_voided and np.any(np.isinf(left)) == is_voided
    # In a test an episode counts as it is; so do references.
    assert np.all(np.isfinite(runner.judge.test(CASE, "short")))
    assert np.all(np.isfinite(runner.judge.test(CASE, BLIND)))


def test_references_and_the_tasks_of_a_report(runner: SuiteRunner, members) -> None:
    tested = runner.judge.test(CASE, "fit", members["fit"].best.params)
    # The origin is all that the blind policy sees: it stays where its own noise takes it.
    blind, clean = runner.judge.test(CASE, BLIND), runner.judge.test(CASE, CLEAN)
    assert tested.mean() < blind.mean() < clean.mean()
    keys = keys_of(CASE)
    assert not np.array_equal(jax.random.key_data(keys.validate), jax.random.key_data(keys.test))


def test_parameters_keep_the_units_that_they_read(members) -> None:
    params = members["fit"].best.params
    assert isinstance(params, GeneratorParams)
    np.testing.assert_allclose(params.inputs.scale, jnp.full(2, 0.3))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"test_tasks": 7}, "test_tasks: 7 is not accepted; accepted: multiples of 2"),
        ({"members": untrained("pgd", "pgd")}, "'pgd' is there twice"),
        ({"members": untrained("pgdd")}, "'pgdd' is not known; accepted: none"),
        ({"members": (dataclasses.replace(FIT, settings=(("step", 1),)),)}, "'step' is no setting of it"),
        ({"members": (GAN, FIT)}, "goes_on_from: 'fit' is no member before it"),
    ],
)
def test_a_suite_that_cannot_be_run_is_refused(change: dict, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_suite(dataclasses.replace(SUITE, **change))
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("scale", "movable"), [([1.0, 2.0, 0.0, 0.0], 2), ([1.0] * 4, 4), ([0.0] * 4, 1)])
def test_an_linf_ball_uses_the_dimensions_that_can_be_moved(scale: list[float], movable: int) -> None:
    case = CASE._replace(radius=0.6, units=Units(0.0, jnp.array(scale)))
    threat = make_threat(label="x", norm="linf", strength="L-inf radius", knowledge="none")
    assert radius_within(threat, case, 4) == pytest.approx(0.6 / movable**0.5)
    assert radius_within(threat._replace(norm="l2"), case, 4) == 0.6


def test_members_that_cannot_learn_from_so_few_steps_are_refused_at_once() -> None:
    few = dataclasses.replace(SETUP.sampling, num_trajectories=5)
    setup = SETUP._replace(env=Navigation2D(NavigationConfig(horizon=5)), sampling=few)
    with pytest.raises(ConfigError, match=r"^adgan: num_minibatches: 8 is not accepted"):
        SuiteRunner(SUITES["standard"], setup)


@pytest.mark.parametrize("name", SUITES)
def test_the_suites_can_be_built(name: str) -> None:
    suite = SUITES[name]
    check_suite(suite)
    runner = SuiteRunner(suite, SETUP)
    for side in ("both", "query", "support"):
        taken = [member for member in suite.members if runner.takes(member, CASE._replace(side=side))]
        assert any(member.name in runner.trainings for member in taken)
