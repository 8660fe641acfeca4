"""Films bodies of MuJoCo with Matplotlib, which needs no display and no graphics driver."""

# MuJoCo's classes live in a C extension without type stubs.
# pyright: reportAttributeAccessIssue=false

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

FRAMES = 50
"""At most; a longer episode is thinned out."""
COLOURS = ("#4C72B0", "#C44E52")


def write_film(path: Path, model: Any, episodes: Sequence[np.ndarray], titles: Sequence[str]) -> None:
    """Writes a GIF with one panel for every episode.

    Bodies that stay in the plane are seen from the side, others from above; the view follows the body.

    Args:
        path: of the file.
        model: an `MjModel`.
        episodes: positions `[H, nq]` each.
        titles: of the panels.
    """
    step = max(1, -(-max(map(len, episodes)) // FRAMES))
    shapes = [[geoms_at(model, qpos) for qpos in episode[::step]] for episode in episodes]
    positions = np.concatenate([ends.reshape(-1, 3) for frames in shapes for ends, _ in frames])
    flat = np.ptp(positions[:, 1]) < 1.0 < np.ptp(positions[:, 0]) + 1.0
    axes_shown = (0, 2) if flat else (0, 1)
    extent = max(1.2, 0.75 * max(np.ptp(ends[..., axes_shown[0]]) for ends, _ in shapes[0]))
    figure = Figure(figsize=(4.2 * len(episodes), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(figure.subplots(1, len(episodes), squeeze=False).flat)

    def draw(number: int) -> list[Any]:
        for ax, frames, title, colour in zip(panels, shapes, titles, COLOURS, strict=False):
            _draw_frame(ax, *frames[min(number, len(frames) - 1)], axes_shown, extent, colour)
            ax.set_title(title, fontsize=11)
        return []

    animation = FuncAnimation(figure, draw, frames=max(map(len, shapes)), blit=False)
    animation.save(path, writer=PillowWriter(fps=12), dpi=70)


def geoms_at(model: Any, qpos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(ends [G, 2, 3], radii [G])` of the body's spheres and capsules."""
    data = mujoco.MjData(model)
    data.qpos[:] = qpos
    mujoco.mj_kinematics(model, data)
    kinds = mujoco.mjtGeom
    # As integers, since a type of the model's is none of the enumeration.
    round_geoms = [int(kind) for kind in (kinds.mjGEOM_SPHERE, kinds.mjGEOM_CAPSULE, kinds.mjGEOM_CYLINDER)]
    shown = [g for g in range(model.ngeom) if model.geom_type[g] in round_geoms and model.geom_bodyid[g] > 0]
    along = data.geom_xmat.reshape(-1, 3, 3)[shown, :, 2]
    is_sphere = model.geom_type[shown] == int(kinds.mjGEOM_SPHERE)
    half = np.where(is_sphere, 0.0, model.geom_size[shown, 1])[:, None] * along
    centre = data.geom_xpos[shown]
    return np.stack([centre - half, centre + half], axis=1), model.geom_size[shown, 0]


def _draw_frame(
    ax: Axes, ends: np.ndarray, radii: np.ndarray, shown: tuple[int, int], extent: float, colour: str
) -> None:
    ax.clear()
    middle = ends.mean(axis=(0, 1))[list(shown)]
    width = ax.get_window_extent().width
    for line, radius in zip(ends[..., list(shown)], radii, strict=True):
        points = 2 * radius / (2 * extent) * width * 72 / ax.figure.dpi
        ax.plot(*line.T, color=colour, linewidth=max(points, 1.5), solid_capstyle="round", alpha=0.85)
    if shown == (0, 2):
        ax.axhline(0.0, color="#777777", linewidth=1)
        middle = np.array([middle[0], 0.6])
    ax.set_xlim(middle[0] - extent, middle[0] + extent)
    ax.set_ylim(middle[1] - 0.75 * extent, middle[1] + 0.75 * extent)
    # Ticks move with the world, so that the body's way can be seen.
    ax.set_xticks(np.arange(np.ceil(middle[0] - extent), middle[0] + extent))
    ax.set_yticks([])
    ax.set_xlabel("m", fontsize=9)
