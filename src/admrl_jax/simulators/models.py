"""Model files: where Gymnasium keeps them, and how they are loaded."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import contextlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import mujoco

from admrl_jax.simulators.base import Model, ModelParams, SimulatorError


def model_path(model: Model) -> Path:
    """Path of a model's MJCF file, found without importing Gymnasium's environments.

    Raises:
        SimulatorError: there is no such file.
    """
    path = Path(model.file)
    if path.parent == Path():
        spec = importlib.util.find_spec("gymnasium")
        if spec is None or spec.origin is None:
            raise SimulatorError("the model files come with the package gymnasium, which is not installed")
        path = Path(spec.origin).parent / "envs" / "mujoco" / "assets" / path
    if not path.is_file():
        raise SimulatorError(f"model: there is no file {path}")
    return path


_loading = threading.RLock()


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps MuJoCo from warning while a model file is read, by one thread at a time.

    Gymnasium's and Brax's files use an attribute that MuJoCo calls deprecated; the warning, which
    would also leave a log file in the current folder, is not for our users. The handler of warnings is one
    setting for the whole process: two threads that load and change it at once abort it.
    """
    with _loading:
        mujoco.set_mju_user_warning(lambda message: None)
        try:
            yield
        finally:
            mujoco.set_mju_user_warning(None)


def load_model(model: Model) -> mujoco.MjModel:
    """Loads a model's MJCF file."""
    with quiet_loading():
        return mujoco.MjModel.from_xml_path(str(model_path(model)))


def control_range(model: mujoco.MjModel) -> tuple[tuple[float, float], ...]:
    """Lowest and highest value of each control; infinite where the file sets no limit."""
    limits = zip(model.actuator_ctrlrange, model.actuator_ctrllimited, strict=True)
    return tuple((float(low), float(high)) if on else (-math.inf, math.inf) for (low, high), on in limits)


def default_params(model: mujoco.MjModel) -> ModelParams:
    """The numbers of the model file, copied."""
    return ModelParams(*(jnp.array(getattr(model, name), jnp.float32) for name in ModelParams._fields))
