"""Which settings of JAX decide a run's numbers, and which of them are the same by another name."""

import json
from pathlib import Path

import jax
import pytest

from admrl_jax.runs.numerics import FILE, PRECISION, check_settings, settings_of_jax


def test_products_in_float32_have_one_name_on_every_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jax.config.values[PRECISION]
    assert before is None
    assert check_settings(tmp_path) == ""
    try:
        # A run of a CPU goes on where JAX was asked for float32, and back.
        jax.config.update(PRECISION, "highest")
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        assert settings_of_jax()[PRECISION] is None and check_settings(tmp_path) == ""
        (tmp_path / FILE).write_text(json.dumps(settings_of_jax() | {PRECISION: "highest"}))
        jax.config.update(PRECISION, None)
        assert check_settings(tmp_path) == f"{PRECISION}: None -> default", "an accelerator rounds"
        monkeypatch.undo()
        assert check_settings(tmp_path) == ""
        jax.config.update(PRECISION, "bfloat16")
        assert check_settings(tmp_path) == f"{PRECISION}: None -> bfloat16"
    finally:
        jax.config.update(PRECISION, before)
