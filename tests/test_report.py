"""The report is read by people: its numbers, its warnings and its figures are checked on a synthetic run."""

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from admrl_jax.methods import PAPER_METHODS
from admrl_jax.protocol.run import describe_attack, describe_method
from admrl_jax.report.figures import draw, frame
from admrl_jax.report.results import cell_values, has_results, read_results
from admrl_jax.report.tables import equal_size_table, mean_and_range, rounded, table, table_1
from admrl_jax.report.write import report_text, write_report
from admrl_jax.runs.files import DamagedFileError
from admrl_jax.runs.metrics import read_metrics

PANELS = (
    ("gaussian", ""),
    ("l2_noise", ""),
    ("fgsm", ""),
    ("adgan", "paper"),
    ("adgan", "adaptive"),
    ("adgan_no_gan", "adaptive"),
)
OTHERS = ("black_box", "stuck_sensor", "sensor_bias")
FLOOR = -38.3
STRENGTHS = (0.2, 0.5, 0.8)
RESISTANCE = {"maml": 1.0, "random": 0.6, "fgsm": 0.9, "admrl": 0.5}
ATTACKED_CELLS = (("clean", "attacked"), ("attacked", "clean"), ("attacked", "attacked"))


def make_rows(seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for method in PAPER_METHODS:
        for seed in seeds:
            base = {"method": method, "seed": seed, "strength": 0.0, "protocol": "", "attack_size": 0.0}
            clean = {
                "attack": "none",
                "support": "clean",
                "query": "clean",
                "pre": -40.0,
                "post": -12.0 - seed,
            }
            rows.append(base | clean)
            for attack, protocol in PANELS:
                if attack == "adgan_no_gan" and method != "maml":
                    continue
                for s in STRENGTHS:
                    for support, query in ATTACKED_CELLS:
                        cell = {"attack": attack, "protocol": protocol, "strength": s, "support": support}
                        harm = (query == "attacked") * 50 + (support == "attacked") * 10
                        post = -12.0 - seed - harm * s * RESISTANCE[method]
                        size = s * (1.25 if attack == "gaussian" else 1.0)
                        result = {"query": query, "pre": -40.0 - s, "post": post, "attack_size": size}
                        rows.append(base | cell | result)
    return rows


def make_results(env: str = "navigation_2d", preset: str = "quick", seeds: tuple[int, ...] = (0, 1, 2)):
    curves = [
        {
            "method": method,
            "seed": seed,
            "step": step,
            "attack": attack,
            "strength": 0.0 if attack == "none" else 0.2,
            "pre": -40.0,
            "post": -45
            + 33 * (1 - np.exp(-step / 12))
            - seed
            - (attack != "none") * 8 * RESISTANCE.get(method, 1),
        }
        for method in ("pretrain", *PAPER_METHODS)
        for seed in seeds
        for attack in ("none", "gaussian", "fgsm", "adgan")
        for step in ((0, 10, 20, 30) if method == "pretrain" else (40, 50))
    ]
    config = {
        "env": {"horizon": 100, "action_scale": 10.0},
        "seeds": list(seeds),
        "units": "paper",
        "schedule": {"pretrain_steps": 30, "finetune_steps": 20},
        "eval": {
            "strengths": list(STRENGTHS),
            "curve_strength": 0.2,
            "num_tasks": 40,
            "num_trajectories": 20,
            "attacker": {"steps": 15, "num_tasks": 20, "num_trajectories": 11},
        },
        "defences": {
            "none": {},
            "noise": {"radius": 1.0},
            "fgsm": {"radius": 0.2},
            "adgan": {"perturbation_bound": 0.2, "warmup_steps": 5, "adversary": {}},
        },
    }
    return {
        "env": env,
        "preset": preset,
        "config": config,
        "methods": {method: describe_method(method) for method in PAPER_METHODS},
        "attacks": {name: describe_attack(name) for name in ("none", *dict(PANELS))},
        "units": "raw observation units",
        "versions": {"jax": "0.10.2"},
        "device": "cpu",
        "simulator": "none",
        "floor": FLOOR,
        "rows": make_rows(seeds),
        "curves": curves,
    }


def write_metrics(path: Path, seeds: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    stages = [("pretrain", "pretrain", 0, 30), ("admrl", "warmup", 30, 5)]
    stages += [(m, "finetune", 30, 20) for m in PAPER_METHODS] + [
        (m, "attack-adgan-0.8", 0, 15) for m in PAPER_METHODS
    ]
    rows = []
    for seed in seeds:
        for method, stage, start, length in stages:
            for step in range(start + 1, start + length + 1):
                row: dict[str, Any] = {"seed": seed, "method": method, "stage": stage, "step": step}
                row["train/post_return"] = -45 + min(step, 30) * (stage != "attack-adgan-0.8") + rng.normal()
                row["attack/size"] = 0.0 if stage == "pretrain" else 0.2
                if stage in ("pretrain", "finetune"):
                    row |= {
                        "train/kl": 0.008 + 0.001 * rng.normal(),
                        "train/accepted": int(rng.random() < 0.9),
                    }
                if method == "admrl" or stage.startswith("attack"):
                    names = (
                        "adversarial_loss",
                        "gan_loss",
                        "hinge_loss",
                        "clean_accuracy",
                        "perturbed_accuracy",
                    )
                    row |= {f"adversary/{name}": 0.5 + 0.05 * rng.normal() for name in (*names, "raw_size")}
                rows.append(row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)


def write_run(run_dir: Path, results: dict[str, Any], trajectories: bool = True) -> Path:
    seeds = tuple(results["config"]["seeds"])
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "results.json").write_text(json.dumps(results))
    write_metrics(run_dir / "metrics.csv", seeds)
    if trajectories:
        rng = np.random.default_rng(1)
        goals = np.array([[0.4, 0.3], [-0.45, 0.2], [-0.2, -0.4], [0.3, -0.35]])
        arrays: dict[str, Any] = {"goals": goals}
        for method in PAPER_METHODS:
            for cell in ("clean", "attacked"):
                for phase in ("pre", "post"):
                    drift = goals[:, None, None] / 30 * (phase == "post") * (1.0 if cell == "clean" else 0.4)
                    path = np.cumsum(drift + 0.02 * rng.normal(size=(4, 3, 30, 2)), axis=2)
                    mask = np.broadcast_to(np.arange(30) < 25, (4, 3, 30)).astype(float)
                    arrays |= {f"{method}/{cell}/{phase}": path, f"{method}/{cell}/{phase}/mask": mask}
        np.savez(run_dir / "trajectories.npz", **arrays)
    return run_dir


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("run"), make_results()))


def test_a_packed_run_reads_like_a_plain_one_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_results(), trajectories=False)
    plain = read_results(run), read_metrics(run)
    for name in ("results.json", "metrics.csv"):
        (run / f"{name}.gz").write_bytes(gzip.compress((run / name).read_bytes()))
        (run / name).unlink()
    assert has_results(run) and (read_results(run), read_metrics(run)) == plain
    packed = (run / "results.json.gz").read_bytes()
    flipped = packed[:100] + bytes([packed[100] ^ 1]) + packed[101:]
    for damaged in (packed[:-9], b"{}", flipped, gzip.compress(b"{")):
        (run / "results.json.gz").write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"results.json.gz is damaged"):
            read_results(run)
    (run / "results.json").write_text("{}")
    assert read_results(run) == {}, "what a run wrote itself comes first"
    (run / "results.json").unlink()
    (run / "results.json.gz").unlink()
    assert not has_results(run)


def line_with(text: str, *parts: str) -> str:
    return next(line for line in text.splitlines() if all(part in line for part in parts))


def test_figures_are_written_and_embedded(report: Path):
    names = {"strength", "convergence_attacked", "convergence_clean", "cells", "training", "trajectories"}
    assert {path.name for path in (report.parent / "figures").iterdir()} == {f"{name}.png" for name in names}
    text = report.read_text()
    for name in names:
        assert f"](figures/{name}.png)" in text
        assert (report.parent / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_a_learned_attack_has_a_table_1_too() -> None:
    results = make_results()
    results["rows"] = [row for row in results["rows"] if row["attack"] in ("none", "l2_noise")]
    lines = table_1(results).splitlines()
    assert lines[0] == "| row | paper, printed | L2 noise, 0.2 | L2 noise, 0.5 | L2 noise, 0.8 |"
    # -13 - 60 * 0.2 * 0.5
    assert line_with(lines[-1], "adMRL").split("|")[3].strip().startswith("-19.00 [")


def test_only_noise_of_exactly_the_radius_is_noise_of_that_size() -> None:
    results = make_results()
    noise = [row for row in results["rows"] if row["attack"] == "l2_noise"]
    results["rows"] += [row | {"attack": name} for row in noise for name in OTHERS]
    results["attacks"] |= {name: describe_attack(name) for name in OTHERS}
    header = equal_size_table(results).splitlines()[0]
    assert "L2 noise, same radius" in header and "sensor bias, same radius" in header
    assert "black box" not in header and "stuck sensor" not in header


def test_numbers_in_the_tables(report: Path):
    text = report.read_text()
    # clean: seeds -12, -13, -14; the paper prints -12.18 for MAML
    clean = "| MAML | -40.00 ↓ [-40.00, -40.00] | -13.00 [-14.00, -12.00] | 27.00 |"
    assert clean in text and line_with(text, clean).endswith("| -12.18 |")
    # Table I, adMRL, attacked-attacked: -13 - 60 * s * 0.5 at s = 0.2 and 0.8; printed -47.7
    row = line_with(text, "| adMRL 'GAN' |")
    assert row.startswith("| adMRL 'GAN' | -47.70 | -19.00 [-20.00, -18.00] |")
    assert row.endswith("| -37.00 [-38.00, -36.00] |")
    # grid: all four methods, before -> after
    assert "| Gaussian noise | 0.5 | attacked | clean | -40.50 → -18.00 |" in text
    # adMRL - MAML at s = 0.8, attacked-attacked: 60 * 0.8 * 0.5 = 24 in every seed
    assert (
        "| adGAN, adaptive | 0.8 | attacked | attacked | 24.00 | 24.00, 24.00, 24.00 | [24.00, 24.00] |"
        in text
    )
    assert "adMRL is above MAML in every seed in 45 of 46 cells" in text
    # adGAN 0.5 is as large as Gaussian 0.4; MAML loses 60 per unit of strength: -13 - 30 against -13 - 24
    assert "| adGAN, adaptive | 0.5 | MAML | 0.500 | -43.00 ↓ | -37.00 | -6.00 | -43.00 ↓ | 0.00 |" in text
    # an attack that met one method only
    assert (
        "| adGAN without GAN loss, adaptive | 0.2 | attacked | attacked | -40.20 → -25.00 | - | - | - |"
        in text
    )


def test_settings(report: Path):
    text = report.read_text()
    line = line_with(text, "| attackers |")
    for part in ("15 updates", "20 tasks", "11 episodes"):
        assert part in line
    line = line_with(text, "| methods |")
    assert "Random: maml_trpo + noise (radius 1.0)" in line
    assert "adMRL: maml_trpo + adgan (perturbation_bound 0.2, warmup_steps 5)" in line


def test_warnings(report: Path):
    text = report.read_text()
    assert "below the floor of -38.30 is worse than doing nothing" in text
    assert "**This run used `quick` settings" in text and "not the paper's" in text
    assert "This run used" not in report_text(make_results(preset="paper"), {})
    assert "One seed" in report_text(make_results(seeds=(3,)), {})


def test_few_seeds_give_no_interval_and_no_wins(report: Path):
    two, three = (report_text(make_results(seeds=tuple(range(n))), {}) for n in (2, 3))
    eight = report_text(make_results(seeds=tuple(range(8))), {})
    assert "in every seed in" not in two and "interval" not in two and "bootstrap" not in two
    assert "in every seed in" in three and "95 % t interval" in three and "bootstrap" not in three
    assert "95 % t interval" in eight and "95 % bootstrap" in eight


def test_opponents_are_left_out_where_none_learns(tmp_path: Path):
    results = make_results(seeds=(0,))
    results["methods"] = {"maml": describe_method("maml")}
    results["rows"] = [row for row in results["rows"] if row["method"] == "maml"]
    results["curves"] = [row for row in results["curves"] if row["method"] in ("pretrain", "maml")]
    write_run(tmp_path, results, trajectories=False)
    metrics = [row for row in read_metrics(tmp_path) if row["method"] in ("pretrain", "maml")]
    shown = {}
    for name, rows in {"alone": metrics, "beside adMRL": read_metrics(tmp_path)}.items():
        everything = results if name == "alone" else make_results(seeds=(0,))
        axes = draw(everything, rows, {})["training"][0].axes
        shown[name] = [ax.axison for ax in axes]
        # No panel is empty: each has a curve beside its reference lines.
        assert all(len(ax.lines) > 1 or not ax.axison for ax in axes), name
    assert shown["beside adMRL"] == [True] * 8
    assert shown["alone"] == [True] * 4 + [False] * 3 + [True]


def test_same_files_same_report(report: Path, tmp_path: Path):
    again = write_report(write_run(tmp_path, make_results()))
    outputs = [report.name, *(f"figures/{path.name}" for path in (report.parent / "figures").iterdir())]
    for name in outputs:
        assert (again.parent / name).read_bytes() == (report.parent / name).read_bytes(), name


def test_paper_numbers_belong_to_the_environment():
    text = report_text(make_results("halfcheetah_dir"), {})
    assert "| MAML 'Baseline' | 50.30 |" in text
    assert "-12.18" not in text and "-50.20" not in text


def test_what_the_opponent_learned_is_told_where_it_was_measured():
    results = make_results()
    assert "What the opponent learns" not in report_text(results, {})
    results["opponents"] = [
        {
            "method": "admrl",
            "attack": "adgan",
            "strength": 0.2,
            "seed": seed,
            "step": step,
            "post": -step / 10 - seed,
        }
        for step in (300, 350)
        for seed in (0, 1)
    ]
    text = report_text(results, {})
    assert "| method | its opponent | step 300 | step 350 |" in text
    assert "| adMRL | adGAN, 0.2 | -30.50 | -35.50 |" in text


def test_partial_run_still_reports(tmp_path: Path):
    results = make_results(seeds=(0,))
    results["rows"] = [row for row in results["rows"] if row["attack"] == "none" and row["method"] == "maml"]
    results["curves"] = []
    text = write_report(write_run(tmp_path, results, trajectories=False)).read_text()
    assert "| MAML | -40.00 ↓ | -12.00 |" in text
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"training.png"}
    assert "strength.png" not in text and "trajectories.png" not in text


def test_frame_leaves_out_runaways_only():
    goals = np.array([[0.4, -0.5]])
    usual = np.linspace(-1.0, 1.0, 1000).reshape(500, 2)
    assert frame([usual, 0.1 * usual], goals) == (pytest.approx(1.05), 0.0)
    limit, share_cut = frame([0.1 * usual], goals)
    assert limit == pytest.approx(1.25 * 0.5) and share_cut == 0.0
    runaway = usual.copy()
    runaway[0] = 50.0
    runaway[1] = np.nan  # after the end of an episode
    limit, share_cut = frame([runaway], goals)
    assert 1.0 < limit < 1.5 and share_cut == pytest.approx(1 / 499)


def test_helpers():
    assert table(("a", "b"), [("x", "1")]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
    assert rounded(float("nan")) == "-" and rounded(-5.0, -4.0) == "-5.00 ↓"
    assert mean_and_range({0: 1.0, 1: 3.0}) == "2.00 [1.00, 3.00]" and mean_and_range({0: 1.0}) == "1.00"
    rows = make_rows((1, 0))
    assert list(cell_values(rows, ("fgsm", ""), 0.2, ("attacked", "attacked"), "maml")) == [0, 1]
