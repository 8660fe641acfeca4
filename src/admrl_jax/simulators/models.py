"""Model files: where Gymnasium keeps them, and how they are loaded."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import contextlib
import hashlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from admrl_jax.simulators.base import Model, ModelParams, SimulatorError

GYMNASIUM = "gymnasium:"
"""Before the name of one of Gymnasium's files."""


def model_path(model: Model) -> Path:
    """Path of a model's MJCF file, found without importing Gymnasium's environments.

    A file that is there comes first, then Gymnasium's of that name.

    Raises:
        SimulatorError: there is no such file.
    """
    name = str(model.file)
    path = Path(name).expanduser()
    if not name.startswith(GYMNASIUM) and (path.is_file() or path.parent != Path()):
        found = path
    else:
        spec = importlib.util.find_spec("gymnasium")
        if spec is None or spec.origin is None:
            raise SimulatorError("the model files come with the package gymnasium, which is not installed")
        found = Path(spec.origin).parent / "envs" / "mujoco" / "assets" / name.removeprefix(GYMNASIUM)
    if not found.is_file():
        raise SimulatorError(f"model: there is no file {found}")
    return found


def absolute(model: Model) -> Model:
    """The same model, whatever the current folder is later."""
    path = model_path(model)
    packaged = "gymnasium" in path.parts and not Path(str(model.file)).expanduser().is_file()
    name = str(model.file).removeprefix(GYMNASIUM)
    return model._replace(file=GYMNASIUM + name if packaged else str(path.absolute()))


_loading = threading.RLock()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps MuJoCo from warning while a model file is read, by one thread at a time.

    Gymnasium's and Brax's files use an attribute that MuJoCo calls deprecated; the warning, which
    would also leave a log file in the current folder, is not for our users. The handler of warnings is one
    setting for the whole process: two threads that load and change it at once abort it.
    """
    with _loading:
        before = mujoco.get_mju_user_warning()
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(before)


def load_model(model: Model) -> mujoco.MjModel:
    """Loads a model's MJCF file.

    Raises:
        SimulatorError: there is no such file, or it is no model.
    """
    path = model_path(model)
    try:
        with quiet_loading():
            return mujoco.MjModel.from_xml_path(str(path))
    except (ValueError, mujoco.FatalError) as error:
        reason = " ".join(str(error).split())
        raise SimulatorError(f"model: {path} is no model that MuJoCo can read: {reason}") from error


def digest(model: mujoco.MjModel) -> str:
    """SHA-256 of all numbers of a model: equal models, equal digests, whatever file they came from."""
    numbers = np.empty(mujoco.mj_sizeModel(model), np.uint8)
    mujoco.mj_saveModel(model, None, numbers)
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def refuse_what_is_not_carried(model: mujoco.MjModel) -> None:
    """Refuses models whose engine state is more than positions, velocities and activations.

    Raises:
        SimulatorError: naming what the model has.
    """
    for count, what in (
        (model.nhistory, "delayed motors or sensors"),
        (model.npluginstate, "plugins with a state"),
    ):
        if count:
            raise SimulatorError(
                f"model: {what} are not accepted; accepted: bodies whose state is positions, velocities "
                "and activations of motors"
            )


def rest_of_state(model: mujoco.MjModel, qvel: jax.Array) -> Any:
    """What `SimState.internal` starts as: accelerations, and activations where motors have any.

    Args:
        model: the body.
        qvel: `[nv]`.
    """
    if not model.na:
        return jnp.zeros_like(qvel)
    return jnp.zeros_like(qvel), jnp.zeros(model.na, qvel.dtype)


def describe(model: mujoco.MjModel) -> dict[str, Any]:
    """What a `Simulator` says of a model, whichever engine runs it; see there."""
    free, ball = int(mujoco.mjtJoint.mjJNT_FREE), int(mujoco.mjtJoint.mjJNT_BALL)
    offsets = {free: 3, ball: 0}
    joints = zip(model.jnt_type, model.jnt_qposadr, strict=True)
    return {
        "qpos0": tuple(float(x) for x in model.qpos0),
        "nv": model.nv,
        "nu": model.nu,
        "ctrl_range": control_range(model),
        "quaternions": tuple(
            int(place) + offsets[int(kind)] for kind, place in joints if int(kind) in offsets
        ),
        "keyframes": tuple(
            (model.key(i).name, tuple(map(float, model.key_qpos[i])), tuple(map(float, model.key_qvel[i])))
            for i in range(model.nkey)
        ),
        "sensors": tuple(
            (model.sensor(i).name, int(first), int(first + size))
            for i, (first, size) in enumerate(zip(model.sensor_adr, model.sensor_dim, strict=True))
        ),
    }


def control_range(model: mujoco.MjModel) -> tuple[tuple[float, float], ...]:
    """Lowest and highest value of each control; infinite where the file sets no limit."""
    limits = zip(model.actuator_ctrlrange, model.actuator_ctrllimited, strict=True)
    return tuple((float(low), float(high)) if on else (-math.inf, math.inf) for (low, high), on in limits)


def default_params(model: mujoco.MjModel) -> ModelParams:
    """The numbers of the model file, copied."""
    return ModelParams(*(jnp.array(getattr(model, name), jnp.float32) for name in ModelParams._fields))
