"""Films of bodies: what they show of a body, and that they move."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from admrl_jax.envs.ant import AntVel
from admrl_jax.envs.half_cheetah import HalfCheetahDir
from admrl_jax.report.film import FRAMES, geoms_at, write_film
from admrl_jax.simulators.models import load_model


@pytest.mark.parametrize("family", [HalfCheetahDir, AntVel])
def test_a_film_has_a_frame_for_every_second_step_and_moves(family: type, tmp_path: Path) -> None:
    model = load_model(family.model)
    episode = np.repeat(model.qpos0[None], 2 * FRAMES, axis=0)
    episode[:, 0] += np.linspace(0, 3, len(episode))
    write_film(tmp_path / "film.gif", model, [episode, episode[::-1]], ["there", "back"])
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == FRAMES
        first = np.asarray(film.convert("L"), float)
        film.seek(FRAMES // 2)
        assert np.abs(np.asarray(film.convert("L"), float) - first).max() > 50


def test_spheres_and_capsules_are_where_the_engine_has_them() -> None:
    model = load_model(HalfCheetahDir.model)
    ends, radii = geoms_at(model, model.qpos0)
    moved, _ = geoms_at(model, model.qpos0 + np.eye(model.nq)[0])
    # Torso, head and two legs of three parts; the first position moves all of them forwards.
    assert ends.shape == (8, 2, 3) and radii.shape == (8,)
    np.testing.assert_allclose(moved - ends, np.broadcast_to([1.0, 0.0, 0.0], ends.shape), atol=1e-9)
    length = np.linalg.norm(ends[0, 1] - ends[0, 0])
    assert length == pytest.approx(1.0), "the torso is a metre long"
