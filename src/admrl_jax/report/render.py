"""Films bodies with MuJoCo's renderer, in a process of its own: `python -m admrl_jax.report.render IN OUT`.

MuJoCo chooses its graphics library when it is imported, and a library that is broken can end a process.
"""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

LIBRARIES = ("egl", "osmesa")
"""Of graphics without a display, in the order in which they are tried."""
HEIGHT, WIDTH = 240, 320
FRAMES_PER_SECOND = 12
FRAMES = 50
"""At most; a longer episode is thinned out."""
COLOURS = 64
TIMEOUT = 300
"""Seconds; a driver may hang."""


def render(path: Path, model: Any, episodes: Sequence[np.ndarray], titles: Sequence[str]) -> bool:
    """Writes a GIF with one panel for every episode; False where there is no graphics library.

    Args:
        path: of the file.
        model: an `MjModel`.
        episodes: positions `[H, nq]` each.
        titles: of the panels.
    """
    import mujoco

    chosen = os.environ.get("MUJOCO_GL")
    with tempfile.TemporaryDirectory() as folder:
        binary, given, film = (Path(folder, name) for name in ("model.mjb", "given.npz", "film.gif"))
        mujoco.mj_saveModel(model, str(binary))
        arrays = {str(i): np.asarray(qpos) for i, qpos in enumerate(episodes)}
        np.savez(given, allow_pickle=False, titles=np.array(titles), **arrays)
        for library in (chosen,) if chosen else LIBRARIES:
            try:
                done = subprocess.run(
                    [sys.executable, "-m", __name__, str(binary), str(given), str(film)],
                    env=os.environ | {"MUJOCO_GL": library},
                    capture_output=True,
                    timeout=TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                continue
            if done.returncode == 0 and film.is_file():
                path.write_bytes(film.read_bytes())
                return True
    return False


def frames(model: Any, episodes: Sequence[np.ndarray], titles: Sequence[str]) -> list[np.ndarray]:
    """Pictures `[HEIGHT, WIDTH * len(episodes), 3]` of every step; the camera follows the body."""
    import mujoco
    from PIL import Image, ImageDraw

    data, camera = mujoco.MjData(model), mujoco.MjvCamera()
    camera.type = mujoco.mjtCamera.mjCAMERA_TRACKING
    camera.trackbodyid = min(1, model.nbody - 1)
    camera.distance, camera.azimuth, camera.elevation = 1.8 * body_size(model), 90.0, -15.0
    pictures = []
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        longest = max(map(len, episodes))
        for step in range(0, longest, max(1, -(-longest // FRAMES))):
            panels = []
            for qpos, title in zip(episodes, titles, strict=True):
                data.qpos[:] = qpos[min(step, len(qpos) - 1)]
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera)
                panel = Image.fromarray(renderer.render())
                ImageDraw.Draw(panel).text((6, 4), title, fill=(255, 255, 255))
                panels.append(np.asarray(panel))
            pictures.append(np.concatenate(panels, axis=1))
    return pictures


def body_size(model: Any) -> float:
    """Largest extent of what moves in the default pose (m); the floor does not count."""
    import mujoco

    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    moving = model.geom_bodyid > 0
    if not moving.any():
        return float(model.stat.extent)
    return float(np.ptp(data.geom_xpos[moving], axis=0).max() + 2 * model.geom_rbound[moving].max())


def save_gif(path: Path, pictures: Sequence[np.ndarray]) -> None:
    """Writes pictures `[H, W, 3]` as a GIF that runs for ever."""
    from PIL import Image

    first, *rest = (Image.fromarray(picture).quantize(COLOURS) for picture in pictures)
    duration = 1000 // FRAMES_PER_SECOND
    first.save(path, save_all=True, append_images=rest, duration=duration, loop=0)


if __name__ == "__main__":
    import mujoco as engine

    binary_path, given_path, film_path = sys.argv[1:]
    with np.load(given_path) as saved:
        words = [str(x) for x in saved["titles"]]
        taken = [saved[str(i)] for i in range(len(words))]
    loaded = engine.MjModel.from_binary_path(binary_path)
    save_gif(Path(film_path), frames(loaded, taken, words))
