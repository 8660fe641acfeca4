"""What an engine carries from one control step to the next, and how models are told apart."""

import os
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from admrl_jax.envs.adapters import from_model_file
from admrl_jax.simulators import Model, SimulatorError, make_simulator
from admrl_jax.simulators import mujoco as host
from admrl_jax.simulators.models import load_model, model_path

SLIDER = """
<mujoco>
  <option timestep="0.01" gravity="0 0 0"/>
  <worldbody>
    <body>
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom size="0.1" mass="{mass}"/>
    </body>
  </worldbody>
  <actuator>{motor}</actuator>
  {more}
</mujoco>
"""
MOTORS = {
    "filterexact": ('<general joint="x" dyntype="filterexact" dynprm="0.5"/>', 1.2454),
    "filter": ('<general joint="x" dyntype="filter" dynprm="0.5"/>', None),
    "integrator": ('<general joint="x" dyntype="integrator"/>', 1.3333),
    "servo of velocity": ('<intvelocity joint="x" kp="100" kv="20" actrange="-5 5"/>', None),
    "servo of position": ('<position joint="x" kp="10" kv="5" timeconst="0.5"/>', None),
    "muscle": ('<muscle joint="x" lengthrange="-3 3" force="5"/>', None),
    "none": ('<motor joint="x"/>', 2.0),
}
"""Where each motor takes a mass of 1 kg in 2 s: a closed form, where there is a short one."""


def write(folder: Path, motor: str = MOTORS["none"][0], *, mass: float = 1.0, more: str = "") -> Path:
    """A model file of a mass on a rail."""
    path = folder / "slider.xml"
    path.write_text(SLIDER.format(mass=mass, motor=motor, more=more))
    return path


def slide(path: Path | str, engine: str, frame_skip: int, seconds: float = 2.0) -> float:
    """Where the mass is after `seconds` under control 1."""
    simulator = make_simulator(engine, Model(path), frame_skip, 1)

    def step(state: Any, _: None) -> tuple[Any, None]:
        return simulator.step(state, jnp.ones(1)), None

    def run(qpos: jax.Array) -> jax.Array:
        state = simulator.init(qpos, jnp.zeros(1))
        return jax.lax.scan(step, state, None, length=round(seconds / simulator.dt))[0].qpos[0]

    # As environments call it: a batch.
    return float(jax.jit(jax.vmap(run))(jnp.zeros((2, 1)))[1])


def plain(path: Path, seconds: float = 2.0) -> float:
    """The same by the engine's own loop."""
    model = mujoco.MjModel.from_xml_path(str(path))
    data = mujoco.MjData(model)
    data.ctrl[:] = 1
    for _ in range(round(seconds / model.opt.timestep)):
        mujoco.mj_step(model, data)
    return float(data.qpos[0])


@pytest.mark.parametrize("name", MOTORS)
@pytest.mark.parametrize("frame_skip", [1, 5, 20])
def test_motors_with_activation_move_as_in_mujoco_itself(tmp_path: Path, name: str, frame_skip: int) -> None:
    motor, expected = MOTORS[name]
    path = write(tmp_path, motor)
    moved = slide(path, "mujoco", frame_skip)
    np.testing.assert_allclose(moved, plain(path), rtol=1e-4)
    assert abs(moved) > 0.01
    if expected is not None:
        # The engine's integrator is of first order in the time step.
        np.testing.assert_allclose(moved, expected, rtol=1.5e-2)


@pytest.mark.parametrize("name", ["filterexact", "muscle"])
def test_mjx_carries_activations_too(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, MOTORS[name][0])
    np.testing.assert_allclose(slide(path, "mjx", 5, seconds=1), plain(path, seconds=1), rtol=1e-3)


def test_models_without_activation_carry_no_more_than_before(tmp_path: Path) -> None:
    for engine in ("mujoco", "mjx"):
        simulator = make_simulator(engine, Model(write(tmp_path)), 5, 1)
        state = simulator.init(jnp.zeros(1), jnp.zeros(1))
        assert [x.shape for x in jax.tree.leaves(state)] == [(1,), (1,), (1,)]


def test_what_is_not_carried_is_refused(tmp_path: Path) -> None:
    delayed = write(tmp_path, '<motor joint="x" delay="0.05" nsample="8"/>')
    for engine in ("mujoco", "mjx"):
        with pytest.raises(SimulatorError, match=r"^model: delayed motors or sensors are not accepted"):
            make_simulator(engine, Model(delayed), 5, 1)
    flex = '<deformable/><worldbody><flexcomp name="f" type="grid" count="3 3 3" dim="3"/></worldbody>'
    with pytest.raises(SimulatorError, match=r"^simulator: MJX cannot run this model: .*accepted: mujoco$"):
        make_simulator("mjx", Model(write(tmp_path, more=flex)), 5, 1)


def test_files_that_are_no_models_are_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.xml"
    for text in ("<mujoco><worldbody>", "<mujoco><actuator><motor joint='gone'/></actuator></mujoco>", ""):
        path.write_text(text)
        with pytest.raises(SimulatorError, match=r"^model: .*broken\.xml is no model.*") as refusal:
            make_simulator("mujoco", Model(path), 5, 1)
        assert "\n" not in str(refusal.value)


def test_an_edited_model_is_another_model(tmp_path: Path) -> None:
    light = slide(write(tmp_path, mass=1.0), "mujoco", 5)
    heavy = slide(write(tmp_path, mass=10.0), "mujoco", 5)
    np.testing.assert_allclose(light, 10 * heavy, rtol=1e-4)
    same = [make_simulator("mujoco", Model(tmp_path / "slider.xml"), 5, 1) for _ in range(2)]
    assert same[0] is same[1]


def test_where_a_name_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path).rename(tmp_path / "ant.xml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_model(Model("ant.xml")).nq == 1
    assert load_model(Model("gymnasium:ant.xml")).nq == 15
    assert load_model(Model("~/ant.xml")).nq == 1
    assert model_path(Model("swimmer.xml")) == model_path(Model("gymnasium:swimmer.xml"))
    with pytest.raises(SimulatorError, match=r"^model: there is no file .*assets/gone\.xml$"):
        load_model(Model("gymnasium:gone.xml"))


def test_many_models_share_threads_and_give_memory_back(tmp_path: Path) -> None:
    threads = threading.active_count, lambda: len(os.listdir("/proc/self/task"))
    engines, before = [], None
    for number in range(host.ENGINES_KEPT + 3):
        path = write(tmp_path, mass=1.0 + number)
        engines.append(host.HostEngine(load_model(Model(path)), 1, 2))
        inputs = [np.full((4, 1), value) for value in (0.0, 0.0, 0.0, 1.0)]
        outputs = [np.zeros((4, 1)) for _ in range(3)]
        engines[-1].step([*inputs, np.zeros(4, bool)], outputs)
        np.testing.assert_allclose(outputs[1], 0.01 / (1.0 + number), rtol=1e-6)
        before = before or [count() for count in threads]
    assert [count() for count in threads] == before
    assert [bool(engine._data) for engine in engines] == [False] * 3 + [True] * host.ENGINES_KEPT
    # One that was let go works on.
    engines[0].step([*inputs, np.zeros(4, bool)], outputs)
    np.testing.assert_allclose(outputs[1], 0.01, rtol=1e-6)


SENSORS = '<sensor><jointpos name="where" joint="x"/><velocimeter name="speed" site="s"/></sensor>'
SENSING = SLIDER.replace("<geom", '<site name="s"/><geom')


@pytest.mark.parametrize("engine", ["mujoco", "mjx"])
def test_sensors_read_what_mujoco_reads(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "sensing.xml"
    path.write_text(SENSING.format(mass=1, motor=MOTORS["none"][0], more=SENSORS))
    simulator = make_simulator(engine, Model(path), 3, 1)
    assert simulator.sensors == (("where", 0, 1), ("speed", 1, 4))

    def run(qpos: jax.Array, qvel: jax.Array) -> Any:
        first = simulator.init(qpos, qvel)
        return first, simulator.step(simulator.step(first, jnp.ones(1)), jnp.ones(1))

    starts = np.array([[0.5], [-0.25]]), np.array([[2.0], [0.0]])
    first, last = jax.jit(jax.vmap(run))(*(jnp.asarray(x, jnp.float32) for x in starts))
    model = mujoco.MjModel.from_xml_path(str(path))
    for row, (qpos, qvel) in enumerate(zip(*starts, strict=True)):
        data = mujoco.MjData(model)
        data.qpos[:], data.qvel[:], data.ctrl[:] = qpos, qvel, 1
        mujoco.mj_forward(model, data)
        np.testing.assert_allclose(first.sensors[row], data.sensordata, atol=1e-5)
        for _ in range(6):
            mujoco.mj_step(model, data)
        np.testing.assert_allclose(last.sensors[row], data.sensordata, atol=1e-5)
    one = jax.tree.map(lambda x: x[0], last)
    np.testing.assert_array_equal(simulator.sensor(one, "where"), one.sensors[:1])
    assert simulator.sensor(one, "speed").shape == (3,)
    with pytest.raises(SimulatorError, match=r"^sensor: 'gone' is not in the model; accepted: where, speed$"):
        simulator.sensor(one, "gone")


def test_models_without_sensors_have_none(tmp_path: Path) -> None:
    simulator = make_simulator("mujoco", Model(write(tmp_path)), 1, 1)
    state = simulator.init(jnp.zeros(1), jnp.zeros(1))
    assert state.sensors == () and simulator.step(state, jnp.ones(1)).sensors == ()
    with pytest.raises(SimulatorError, match="accepted: none, the model has no sensors"):
        simulator.sensor(state, "where")


def test_episodes_start_from_a_keyframe(tmp_path: Path) -> None:
    more = '<keyframe><key name="far" qpos="3" qvel="-1"/></keyframe>'
    path = write(tmp_path, more=more)

    def make(keyframe: str, noise: float) -> Any:
        return from_model_file(
            path,
            frame_skip=1,
            sample_task=lambda key: jnp.zeros(()),
            reward=lambda *args: jnp.zeros(()),
            reset_noise=noise,
            keyframe=keyframe,
            simulator="mujoco",
        )

    for keyframe, expected in (("far", [3, -1]), ("", [0, 0])):
        _, obs = make(keyframe, 0.0).reset(jax.random.key(0), jnp.zeros(()))
        np.testing.assert_allclose(obs, expected, atol=1e-6)
    _, noisy = make("far", 0.1).reset(jax.random.key(0), jnp.zeros(()))
    assert 0 < abs(noisy[0] - 3) < 0.1 and noisy[1] != -1
    with pytest.raises(SimulatorError, match=r"^keyframe: 'near' is not in the model; accepted: far$"):
        make("near", 0.0)


def test_noise_leaves_unit_quaternions(tmp_path: Path) -> None:
    path = tmp_path / "free.xml"
    path.write_text(
        "<mujoco><worldbody><body><freejoint/><geom size='0.1'/><body><joint name='arm' type='ball'/>"
        "<geom size='0.1'/></body></body></worldbody>"
        "<actuator><motor joint='arm' gear='1 0 0'/></actuator></mujoco>"
    )
    env = from_model_file(
        path,
        frame_skip=1,
        sample_task=lambda key: jnp.zeros(()),
        reward=lambda *args: jnp.zeros(()),
        reset_noise=0.5,
        simulator="mujoco",
    )
    assert env.simulator.quaternions == (3, 7)
    for seed in range(5):
        qpos, _ = env.start(jax.random.key(seed), jnp.zeros(()))
        for place in (3, 7):
            np.testing.assert_allclose(jnp.linalg.norm(qpos[place : place + 4]), 1, rtol=1e-5)
        assert abs(qpos[4]) > 0.001
