"""The evaluation stages: meta-test grid and convergence curves."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from admrl_jax.attacks.registry import ATTACKS, CLEAN
from admrl_jax.core.types import Params
from admrl_jax.evaluation import EvalResult
from admrl_jax.protocol.attack_stages import Attackers
from admrl_jax.protocol.evaluator import Evaluator
from admrl_jax.protocol.session import Session
from admrl_jax.protocol.train_stages import Arm, Pretrained, snapshot_steps, with_untrained
from admrl_jax.runs import hosts
from admrl_jax.runs.files import is_whole, read_arrays, write_arrays

CELLS = (("clean", "attacked"), ("attacked", "clean"), ("attacked", "attacked"))
CLEAN_CELL = (("clean", "clean"),)

Row = dict[str, Any]


class Test(NamedTuple):
    """One attack on one method at every strength.

    Attributes:
        attack: its name.
        protocol: where its parameters come from: `paper` (trained along with one method, used against all),
            `adaptive` (trained against this policy), or empty where it learns nothing.
        params: for each strength, leading axis the seeds; `()` where it has none.
    """

    attack: str
    protocol: str
    params: Sequence[Params]


def tests_of(method: str, session: Session, arms: dict[str, Arm], attackers: Attackers) -> list[Test]:
    """The attacks of a method's meta-test."""
    count = len(session.config.eval.strengths)
    tests = [Test(CLEAN, "", [()])]
    for name in session.config.eval.attacks_on(method):
        if ATTACKS[name].make_trainer is None:
            tests.append(Test(name, "", [()] * count))
            continue
        transferred = trained_along(session, arms, name)
        if transferred is not None:
            tests.append(Test(name, "paper", [transferred] * count))
        tests.append(Test(name, "adaptive", attackers[name]))
    return tests


def trained_along(session: Session, arms: dict[str, Arm], attack: str) -> Params | None:
    """Parameters `[S, ...]` of an attack that some method was trained against; None if none was."""
    for method, arm in arms.items():
        defence = session.parts.defence(method)
        if defence.trained_attack == attack and defence.attack_params is not None:
            return jax.vmap(defence.attack_params)(arm.state.opponent)
    return None


class MetaTest:
    """The meta-test and the curves.

    Raw returns are kept in `returns/*.npz`; what is there and whole is not measured again.
    """

    def __init__(self, session: Session):
        self._session, self._evaluator = session, Evaluator(session)

    def run(self, method: str, arm: Arm, tests: Iterable[Test]) -> list[Row]:
        """A method under every attack, strength, protocol and support x query cell.

        The process that writes makes the rows, these and those of `curves`; others have none.
        """
        return [row for test in tests for row in self._test(method, arm, test)]

    def _test(self, method: str, arm: Arm, test: Test) -> list[Row]:
        is_clean = test.attack == CLEAN
        strengths = (0.0,) if is_clean else self._session.config.eval.strengths
        cells = [
            (i, strength, support, query)
            for i, strength in enumerate(strengths)
            for support, query in (CLEAN_CELL if is_clean else CELLS)
        ]
        name = ".".join(part for part in (method, test.attack, test.protocol) if part)
        evaluations = [
            lambda i=i, s=strength, support=support, query=query: self._evaluator.evaluate(
                method,
                arm.state.learner.meta_params,
                arm.state.units,
                test.attack,
                test.params[i],
                s if support == "attacked" else 0.0,
                s if query == "attacked" else 0.0,
            )
            for i, strength, support, query in cells
        ]
        saved = self._measure(f"{name}.npz", f"meta-test: {name}", evaluations)
        return [
            {
                "method": method,
                "seed": seed,
                "attack": test.attack,
                "strength": strength,
                "protocol": test.protocol,
                "support": support,
                "query": query,
                **_means(saved["returns"][s, c]),
                "attack_size": round(float(saved["attack_size"][s, c]), 4),
            }
            for s, seed in enumerate(self._session.config.seeds if saved else ())
            for c, (_, strength, support, query) in enumerate(cells)
        ]

    def curves(self, method: str, base: Pretrained, arms: dict[str, Arm]) -> list[Row]:
        """Returns of a method's saved policies, clean and under each attack, on the held-out tasks.

        Args:
            method: whose snapshots; `pretrain` for those of the shared pre-training, from the untrained
                policy on.
            base: the pre-trained policies.
            arms: the fine-tuned methods.
        """
        session = self._session
        schedule = session.config.schedule
        if method in arms:
            first, policies = schedule.pretrain_steps, arms[method].snapshots
            steps, learner_of = snapshot_steps(session, first, schedule.finetune_steps), method
            units = arms[method].state.units
        else:
            learner_of, units = session.config.methods[0], base.state.units
            policies = with_untrained(session, learner_of, base.snapshots)
            count = jax.tree.leaves(base.snapshots)[0].shape[0]
            steps = [0, *snapshot_steps(session, 0, schedule.pretrain_steps)[-count:]]
        rows = []
        for attack in (CLEAN, *session.config.eval.curve_attacks):
            params: Params = ()
            if ATTACKS[attack].make_trainer is not None:
                params = trained_along(session, arms, attack)
                if params is None:
                    continue
            strength = 0.0 if attack == CLEAN else session.config.eval.curve_strength
            evaluations = [
                lambda i=i, attack=attack, params=params, strength=strength: self._evaluator.evaluate(
                    learner_of,
                    jax.tree.map(lambda x: x[i], policies),
                    units,
                    attack,
                    params,
                    strength,
                    strength,
                )
                for i in range(len(steps))
            ]
            saved = self._measure(f"curve.{method}.{attack}.npz", f"curve: {method}, {attack}", evaluations)
            rows += self._step_rows(saved, steps, method, attack, strength)
        return rows

    def opponents(self, method: str, base: Pretrained, arm: Arm) -> list[Row]:
        """Returns of the policy that fine-tuning began with, under the attack trained along, step by step.

        The policy stands still, so what its return does is the attack's doing alone.

        Args:
            method: which trained the attack; one without has no rows.
            base: the pre-trained policies.
            arm: the fine-tuned method.
        """
        attack = self._session.parts.defence(method).trained_attack
        if not attack or not jax.tree.leaves(arm.opponents):
            return []
        schedule, strength = self._session.config.schedule, self._session.config.eval.curve_strength
        first = schedule.pretrain_steps
        steps = [first, *snapshot_steps(self._session, first, schedule.finetune_steps)]
        evaluations = [
            lambda i=i: self._evaluator.evaluate(
                method,
                base.state.learner.meta_params,
                base.state.units,
                attack,
                jax.tree.map(lambda x: x[i], arm.opponents),
                strength,
                strength,
            )
            for i in range(len(steps))
        ]
        saved = self._measure(f"opponent.{method}.npz", f"opponent: {method}, {attack}", evaluations)
        return self._step_rows(saved, steps, method, attack, strength)

    def _step_rows(
        self, saved: dict[str, np.ndarray], steps: Sequence[int], method: str, attack: str, strength: float
    ) -> list[Row]:
        """A row for every seed and outer step; none for processes that do not write."""
        return [
            {
                "method": method,
                "seed": seed,
                "step": step,
                "attack": attack,
                "strength": strength,
                **_means(saved["returns"][s, t]),
            }
            for s, seed in enumerate(self._session.config.seeds if saved else ())
            for t, step in enumerate(steps)
        ]

    def _measure(
        self, file: str, stage: str, evaluations: Sequence[Callable[[], EvalResult]]
    ) -> dict[str, np.ndarray]:
        """Runs evaluations whose results are not there and whole; `[S, evaluations, ...]`.

        Empty for processes that do not write.
        """
        session, names = self._session, ("returns", "attack_size")
        path = session.directory / "returns" / file
        writes = session.journal.writes
        # A run with more strengths than the one that it goes on from has the first ones already.
        saved = read_arrays(path, *names) if writes and is_whole(path, *names) else {}
        # As seen by process 0.
        done = hosts.from_first(saved["returns"].shape[1] if saved else 0)
        if done < len(evaluations):
            results = []
            with session.journal.stage(stage, len(evaluations), done) as progress:
                for evaluate in evaluations[done:]:
                    results.append(evaluate())
                    post = float(results[-1].returns[:, :, -1].mean())
                    cut_short = float(np.sum(results[-1].diverged))
                    progress.update(
                        done + len(results), {"post": post} | ({"diverged": cut_short} if cut_short else {})
                    )
                    session.check_stop()
            if writes:
                new = {name: np.stack([getattr(r, name) for r in results], axis=1) for name in names}
                saved = (
                    {name: np.concatenate([saved[name], new[name]], 1) for name in names} if saved else new
                )
                path.parent.mkdir(exist_ok=True)
                write_arrays(path, **saved)
        return saved


def _means(returns: np.ndarray) -> Row:
    """Mean returns before and after adaptation, of returns `[N, num_adapt_steps + 1, K]`; four decimals."""
    return {
        "pre": round(float(returns[:, 0].mean(dtype=np.float64)), 4),
        "post": round(float(returns[:, -1].mean(dtype=np.float64)), 4),
    }
