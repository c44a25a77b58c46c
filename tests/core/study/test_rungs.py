"""What trials will come to is told, however many went before, as if all of them were looked at each time."""

import random

import numpy as np
import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from metaopt.study.rungs import OWN, Rung


def told(number: int, trials: list[FrozenTrial], *, maximize: bool) -> float | None:
    """Return the same from the definition: every trial looked at anew."""
    reached = [one for one in trials if 50 in one.intermediate_values]
    gains: dict[str, list[float]] = {}
    for one in reached:
        if one.user_attrs.get("result", {}).get("state") == "complete":
            gains.setdefault(one.params["learner"], []).append(one.values[0] - one.intermediate_values[50])
    predicted = {
        one.number: one.intermediate_values[50] + float(np.mean(gains[one.params["learner"]]))
        for one in reached
        if len(gains.get(one.params["learner"], [])) >= OWN
    }
    if number not in predicted:
        return None
    sign = 1 if maximize else -1
    better = sum(sign * other > sign * predicted[number] for other in predicted.values())
    return predicted[number] if better >= max(1, len(predicted) // 3) else None


@pytest.mark.parametrize("maximize", [True, False])
def test_a_trial_is_stopped_as_if_all_were_looked_at_each_time(maximize: bool) -> None:
    draw, rung, verdicts = random.Random(0), Rung(50), set()
    study = optuna.create_study()
    learners = optuna.distributions.CategoricalDistribution(["a", "b", "c"])
    running: list[int] = []
    for _ in range(200):
        number = len(study.get_trials(deepcopy=False))
        reached = {50: draw.randrange(64) / 64} if draw.random() < 0.9 else {}  # among which are equals
        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params={"learner": draw.choice(learners.choices)},
                distributions={"learner": learners},
                intermediate_values=reached,
            )
        )
        trials = study.get_trials(deepcopy=False)
        estimate = rung.estimate(number, trials, maximize=maximize)
        wanted = told(number, trials, maximize=maximize)
        verdicts.add(wanted is None)
        assert estimate == (None if wanted is None else pytest.approx(wanted, abs=1e-12))
        running.append(number)
        for ended in draw.sample(running, draw.randrange(0, min(3, len(running)) + 1)):
            running.remove(ended)
            state = draw.choice(["complete", "complete", "pruned", "failed"])
            trial = optuna.Trial(study, trials[ended]._trial_id)
            trial.set_user_attr("result", {"state": state})
            if state == "failed":
                study.tell(ended, state=TrialState.FAIL)
            else:  # one that was stopped is told as what it would have come to
                study.tell(ended, draw.randrange(64) / 64)
    assert verdicts == {True, False}
