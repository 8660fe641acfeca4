"""The tutorials run as printed, and the table of what an extension touches is right."""

import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "admrl_jax"
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the committed results, as in a clone; pages share compiled programs."""
    (tmp_path / "results").symlink_to(ROOT / "results")
    monkeypatch.chdir(tmp_path)
    yield tmp_path


def run(page: str) -> dict:
    """Runs the Python blocks of a tutorial one after the other and returns their names."""
    document = ROOT / "docs" / "tutorials" / f"{page}.md"
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(), re.S | re.M)
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, str(document), "exec"), namespace)
    return namespace


def test_train(folder: Path) -> None:
    names = run("train")
    assert names["state"].step == 4 and names["tuned"].step == 6
    assert 0 < names["metrics"]["attack/size"] <= 0.1 * 2 / 10 + 1e-6, "the second of ten steps of the ramp"
    saved, state = names["saved"].params, names["state"].learner.meta_params
    jax.tree.map(np.testing.assert_array_equal, saved, state)
    assert (folder / "policies.npz").exists()


def test_attack_a_saved_policy() -> None:
    names = run("attack_a_saved_policy")
    returns, key, pgd = names["mean_returns"], names["test_key"], names["pgd"]
    clean, attacked = (returns(key, pgd, (), r, r)[-1] for r in (0.0, 0.2))
    found = returns(key, names["trainer"].attack, names["best"], 0.2, 0.2)[-1]
    assert clean > -25 and attacked < clean and found < clean
    assert names["history"].returns.shape == (1, 2, 3)
    chosen = next(i for i, start in enumerate(names["starts"]) if start is names["best"])
    assert names["validation"][chosen] == min(names["validation"])
    suite = names["found"]
    assert suite.attacked.mean() < suite.clean.mean() and suite.worst in ("bias", "fit")
    pulled = names["pulled"]
    assert pulled.attacked.mean() < pulled.clean.mean() < 0


def test_add_an_attack() -> None:
    names = run("add_an_attack")
    assert names["episode"].perturbed_obs[0].tolist() == names["episode"].obs[0].tolist(), (
        "nothing to delay yet"
    )
    built = names["SPEC"].make(names["BiasConfig"](angle=0.0), names["admrl"].Victim(names["policy"], 2, 2))
    moved, _ = built.perturb(
        (), (), jax.random.key(0), jax.numpy.zeros(2), names["admrl"].Scene(()), names["budget"]
    )
    assert moved.tolist() == pytest.approx([0.05, 0.0])


def test_add_an_environment() -> None:
    names = run("add_an_environment")
    assert names["result"].returns.shape == (4, 2, 8)
    # Standing still costs the distance to the target, ten times.
    assert float(names["floor"].mean()) == pytest.approx(-10 * float(abs(names["tasks"]).mean()), rel=1e-5)
    assert names["SPEC"].make(names["ReachConfig"](horizon=7), "auto", 0).horizon == 7


def test_add_a_learner() -> None:
    names = run("add_a_learner")
    assert names["state"].step == 3 and names["metrics"]["train/skipped"] == 0
    start = names["learner"].init(jax.random.key(0)).meta_params
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), start, names["state"].learner.meta_params)
    assert all(x > 0 for x in jax.tree.leaves(moved))


def test_add_a_defence() -> None:
    names = run("add_a_defence")
    attacked = names["metrics"]["attack/size"]
    # Half of the tasks at the first of fifty steps of the ramp to 0.1.
    assert float(attacked) == pytest.approx(0.5 * 0.1 / 50, rel=0.02)
    assert names["against"].warmup_steps == 20 and names["against"].update is not None
    assert names["SPEC"].make(names["CalmConfig"](), names["victim"]).loss_term is not None


def test_every_tutorial_is_tested_and_its_neighbours_exist() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {page.stem for page in TUTORIALS} <= tested


def test_what_an_extension_touches() -> None:
    text = (ROOT / "docs" / "extending.md").read_text()
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| `([\w/.]+)` \| (\d+) \| (.*) \|$", text, re.M)
    assert len(rows) == 8
    for file, lines, elsewhere in rows:
        counted = len((PACKAGE / file).read_text().splitlines())
        assert abs(counted - int(lines)) <= 10, f"{file} has {counted} lines"
        mentions = re.findall(r"(\d+) in `([\w/.]+)`", elsewhere)
        assert mentions
        for number, other in mentions:
            name = Path(file).stem
            found = [
                line for line in (PACKAGE / other).read_text().splitlines() if re.search(rf"\b{name}\b", line)
            ]
            assert len(found) == int(number), f"{name} in {other}: {found}"
