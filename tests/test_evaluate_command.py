"""`experiments.evaluate`: a policy on tasks drawn or given, any number of shots, steps and step sizes."""

import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from admrl_jax.attacks.threat import Budget
from admrl_jax.commands import evaluate as evaluate_command
from admrl_jax.commands.evaluate import Arguments, evaluate_main, make_evaluation_plan
from admrl_jax.core.networks import PolicyConfig, make_policy
from admrl_jax.core.settings import ConfigError
from admrl_jax.envs.half_cheetah import HalfCheetahDir, HalfCheetahDirConfig
from admrl_jax.envs.registry import make_env
from admrl_jax.judging import Case
from admrl_jax.learners.maml_trpo import make_maml_trpo
from admrl_jax.learners.promp import ProMPConfig
from admrl_jax.report import render
from admrl_jax.runs.artefact import load_policy, save_policies
from admrl_jax.sampling import SamplingConfig, expose
from admrl_jax.saved import attack_film, film
from admrl_jax.saved.evaluate_run import Adapter, read_tasks, with_step_size
from admrl_jax.simulators.models import load_model
from admrl_jax.suite import Found, SuiteRunner
from admrl_jax.suites import SUITES, untrained
from admrl_jax.training import Setup


def evaluate(source: Path, *flags: str) -> int:
    return evaluate_main("experiments.evaluate RUN", "", [str(source), *flags])


@pytest.fixture(scope="module")
def evaluated(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods of the toy run, with few and many episodes, three steps of two sizes."""
    folder = tmp_path_factory.mktemp("evaluations") / "whole"
    flags = ["--methods", "maml", "pretrain", "--shots", "2", "4", "--steps", "3", "--num-tasks", "3"]
    flags += ["--step-sizes", "0.1", "0.05", "--query-episodes", "4", f"--out={folder}"]
    assert evaluate(finished, *flags) == 0
    return folder


def test_every_stage_of_adaptation_is_in_table_figure_and_numbers(evaluated: Path, finished: Path) -> None:
    results = json.loads((evaluated / "evaluation.json").read_text())
    seeds = json.loads((finished / "config.json").read_text())["seeds"]
    assert results["step_sizes"] == [0.1, 0.05, 0.05]
    rows = {(row["method"], row["seed"], row["shots"]): np.array(row["returns"]) for row in results["rows"]}
    assert set(rows) == {(m, s, k) for m in ("maml", "pretrain") for s in seeds for k in (2, 4)}
    assert all(returns.shape == (4, 3) and np.isfinite(returns).all() for returns in rows.values())
    # Before adaptation nothing depends on the number of shots; after it everything does.
    few, many = rows["maml", seeds[0], 2], rows["maml", seeds[0], 4]
    np.testing.assert_array_equal(few[0], many[0])
    assert np.all(few[1:] != many[1:])
    text = (evaluated / "report.md").read_text()
    assert f"{np.mean([rows['maml', s, 4][3].mean() for s in seeds]):.2f}" in text
    assert "| pretrain | 2 |" in text and "step 3 |" in text
    with Image.open(evaluated / "figures" / "steps.png") as figure:
        assert figure.size[0] > 400


def test_given_tasks_are_those_that_are_measured(finished: Path, tmp_path: Path) -> None:
    goals = [[0.3, -0.2], [0.0, 0.0]]
    path = tmp_path / "goals.json"
    path.write_text(json.dumps(goals))
    flags = ["--methods", "maml", "--steps", "0", "--tasks", str(path), "--query-episodes", "3"]
    assert evaluate(finished, *flags, f"--out={tmp_path / 'out'}") == 0
    results = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    np.testing.assert_allclose(results["tasks"], [goals], rtol=1e-6)
    # Starting on a goal ends the episode; standing still elsewhere pays the distance at every step.
    horizon = results["rows"] and load_policy(finished, "maml").env.horizon
    still = -np.linalg.norm(goals[0]) * horizon
    np.testing.assert_allclose(results["floor"], still / 2, rtol=1e-5)


def test_each_step_has_its_size(finished: Path) -> None:
    trained = load_policy(finished, "maml", seed=0)
    tasks = jnp.array([[0.3, 0.1], [-0.2, 0.4]])
    run = lambda *sizes: Adapter(trained).run(  # noqa: E731
        trained.params, jax.random.key(0), tasks, shots=3, step_sizes=sizes, query_episodes=2
    )
    one, half, both = run(0.1), run(0.05), run(0.1, 1e-6)

    def moved(stages, number: int) -> np.ndarray:
        pairs = zip(*(jax.tree.leaves(stages.params[i]) for i in (number, number - 1)), strict=True)
        return np.concatenate([np.ravel(a - b) for a, b in pairs])

    np.testing.assert_allclose(moved(half, 1), moved(one, 1) / 2, rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(moved(both, 1), moved(one, 1))
    assert 0 < np.abs(moved(both, 2)).max() < 1e-4
    assert with_step_size(trained, 0.1).name == trained.learner.name


def test_bad_input_takes_one_line(finished: Path, tmp_path: Path, capsys) -> None:
    tasks = tmp_path / "tasks.json"
    for content, words in (
        ("{", "cannot be read"),
        ("[]", "holds no list; accepted: a list of tasks, each float32[2]"),
        ("[[1, 2, 3]]", "entry 0 of {} has the shape [3]; accepted: float32[2]"),
        ('[[0, 0], ["a", 1]]', "entry 1 of {} is no task; accepted: float32[2]"),
    ):
        tasks.write_text(content)
        assert evaluate(finished, "--tasks", str(tasks)) == 2
        error = capsys.readouterr().err
        assert words.format(tasks) in error and error.count("\n") == 1, error
    damaged = tmp_path / "policies.npz"
    shutil.copy(finished / "policies.npz", damaged)
    damaged.write_bytes(damaged.read_bytes()[:-100])
    for argv, words in (
        ([], "source: nothing given"),
        ([str(tmp_path / "gone")], "there is no"),
        ([str(damaged)], "is damaged"),
        ([str(finished), "--methods", "mlp"], "methods: 'mlp' is not accepted; accepted: "),
        ([str(finished), "--seeds", "77"], "seeds: 77 is not accepted"),
        ([str(finished), "--steps", "1.5"], "steps: '1.5' is not accepted"),
        ([str(finished), "--step-sizes", "0"], "step_sizes: "),
        ([str(finished), "--shots", "0"], "shots: "),
    ):
        assert evaluate_main("experiments.evaluate RUN", "", argv) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1, error


def test_tasks_of_several_parts(tmp_path: Path) -> None:
    env = make_env("walker2d_params", simulator="mujoco")
    task = env.sample_task(jax.random.key(0))
    path = tmp_path / "tasks.json"
    path.write_text(json.dumps([[np.asarray(leaf).tolist() for leaf in jax.tree.leaves(task)]] * 2))
    read = read_tasks(path, env)
    for leaf, found in zip(jax.tree.leaves(task), jax.tree.leaves(read), strict=True):
        np.testing.assert_allclose(found, jnp.stack([leaf] * 2), rtol=1e-6)
    path.write_text("[[1.0]]")
    with pytest.raises(ConfigError, match=r"^tasks: entry 0 of .* is no task; accepted: float32"):
        read_tasks(path, env)


def test_bodies_that_remember_are_filmed_too() -> None:
    plain = make_env("halfcheetah_dir", simulator="mujoco")
    env = make_env(HalfCheetahDirConfig(remembers_actions=True), simulator="mujoco")
    assert film.body_of(env) == film.body_of(plain) is not None
    state, _ = jax.eval_shape(lambda: env.reset(jax.random.key(0), env.sample_task(jax.random.key(1))))
    assert jax.eval_shape(env.positions, state).shape == (len(plain.simulator.qpos0),)
    assert film.body_of(make_env("navigation_2d")) is None


def test_films_fall_back_to_lines_where_nothing_renders(tmp_path: Path, monkeypatch, capsys) -> None:
    env = make_env("halfcheetah_dir", simulator="mujoco")
    episode = np.repeat(np.asarray(env.simulator.qpos0)[None], 3, axis=0)
    episode[:, 0] += np.arange(3)
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    path = tmp_path / "film.gif"
    assert not render.render(path, load_model(HalfCheetahDir.model), [episode], ["still"])
    film.shoot(path, HalfCheetahDir.model, [(episode, "still"), (episode, "too")])
    assert "libosmesa6" in capsys.readouterr().err
    with Image.open(path) as saved:
        assert saved.n_frames == 3


def test_a_driver_that_hangs_does_not_end_a_report(tmp_path: Path, monkeypatch) -> None:
    def hang(*args, timeout: float, **kwargs):
        raise subprocess.TimeoutExpired(args[0], timeout)

    monkeypatch.setattr(render.subprocess, "run", hang)
    model = load_model(HalfCheetahDir.model)
    assert not render.render(tmp_path / "film.gif", model, [model.qpos0[None]], ["still"])


def test_an_attack_is_filmed_as_it_is_judged(monkeypatch) -> None:
    env = make_env(HalfCheetahDirConfig(horizon=3), simulator="mujoco")
    policy = make_policy(env.obs_size, env.action_size, PolicyConfig(hidden_sizes=(4,)))
    setup = Setup(env, policy, make_maml_trpo(policy), SamplingConfig(num_tasks=1, num_trajectories=2))
    suite = replace(SUITES["quick"], members=untrained("pgd_linf"))
    runner = SuiteRunner(suite, setup)
    case = Case(policy.init(jax.random.key(0)), jax.random.key(1), 0.8, side="query")
    found = Found("pgd_linf", "-", (), np.zeros(1))
    used: dict[str, Budget] = {}

    def exposed(attack, params, support, query=None, *, num_tasks):
        used.update(support=support, query=query)
        return expose(attack, params, support, query, num_tasks=num_tasks)

    monkeypatch.setattr(attack_film, "expose", exposed)
    qpos, _ = attack_film.film_episode(runner, case, found)
    assert qpos.shape == (3, len(env.simulator.qpos0))
    # In the ball of that radius, and on query data only.
    np.testing.assert_allclose(used["query"].radius, 0.8 / env.obs_size**0.5, rtol=1e-6)
    assert used["support"].radius == 0


def test_methods_that_adapt_with_different_steps_are_not_given_one(finished: Path, capsys) -> None:
    assert evaluate(finished, "--step-sizes", "101") == 2
    words = "step_sizes: (101.0,) is not accepted; accepted: numbers from 1e-06 to 100"
    assert words in capsys.readouterr().err
    config = replace(load_policy(finished, "maml").config, methods=("maml", "promp"))
    learners = replace(config.learners, promp=ProMPConfig(inner_lr=0.7))
    config = replace(config, learners=learners)
    saved = {name: load_policy(finished, "maml").params for name in config.methods}
    folder = finished.parent / "two_learners"
    folder.mkdir()
    save_policies(folder / "policies.npz", config, saved, load_policy(finished, "maml").inputs, config.seeds)
    assert evaluate(folder) == 2
    words = "step_sizes: the run has 0.1 of maml_trpo, 0.7 of promp; accepted: one for all methods"
    assert words in capsys.readouterr().err
    plan = make_evaluation_plan(folder, Arguments(methods=("promp",), steps=2))
    assert plan.step_sizes == (0.7, 0.7)
    # An engine that is not here is never asked for, where another one is named.
    with pytest.MonkeyPatch.context() as patch:
        asked = []
        patch.setattr(
            evaluate_command, "load_policy", lambda *x, **y: asked.append(y) or load_policy(*x, **y)
        )
        (tasks := folder / "tasks.json").write_text("[[0.1, 0.2]]")
        make_evaluation_plan(folder, Arguments(methods=("promp",), simulator="mjx", tasks=tasks))
    assert asked and all(words == {"simulator": "mjx"} for words in asked)
    # A size that the presets use.
    assert make_evaluation_plan(folder, Arguments(step_sizes=(30.0,))).step_sizes == (30.0,)


def test_a_body_is_as_large_as_what_moves() -> None:
    # The torso is a metre long, the floor eighty.
    assert 1.0 < render.body_size(load_model(HalfCheetahDir.model)) < 3.0


def test_gifs_show_the_pictures_they_were_given(tmp_path: Path) -> None:
    pictures = [np.full((8, 16, 3), shade, np.uint8) for shade in (0, 128, 255)]
    render.save_gif(tmp_path / "film.gif", pictures)
    with Image.open(tmp_path / "film.gif") as saved:
        assert saved.n_frames == 3 and saved.info["loop"] == 0
        shades = []
        for number in range(3):
            saved.seek(number)
            shades.append(int(np.asarray(saved.convert("L")).mean()))
    np.testing.assert_allclose(shades, [0, 128, 255], atol=2)
