"""Model files: where Gymnasium keeps them, and how they are loaded."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import importlib.util
from pathlib import Path

import mujoco

from admrl_jax.simulators.base import SimulatorError


def gymnasium_model(file_name: str) -> Path:
    """Path of a model file that Gymnasium ships, found without importing its environments."""
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise SimulatorError("the model files come with the package gymnasium, which is not installed")
    return Path(spec.origin).parent / "envs" / "mujoco" / "assets" / file_name


def load_model(path: Path) -> mujoco.MjModel:
    """Loads an MJCF file.

    Gymnasium's files use an attribute that MuJoCo calls deprecated; the warning, which would also
    leave a log file in the current folder, is not for our users.
    """
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        return mujoco.MjModel.from_xml_path(str(path))
    finally:
        mujoco.set_mju_user_warning(None)
