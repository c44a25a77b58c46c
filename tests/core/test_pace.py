"""How many steps a time is good for, where they are recorded on the way and faster then."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metaopt.executor import Executor, Loop, Recorder, Traced
from metaopt.pace import Pace, measured

PACE = Pace(plain=0.5, after=10, recording=3.0, replayed=0.25)
times = st.floats(1e-3, 1e3)


@pytest.mark.parametrize(("steps", "seconds"), [(0, 0), (4, 2), (10, 5), (12, 8.5), (30, 13)])
def test_steps_take_their_time_and_recording_once(steps: float, seconds: float) -> None:
    assert PACE.seconds(steps) == seconds
    assert PACE.steps(seconds) == steps


def test_in_the_time_of_recording_no_step_is_taken() -> None:
    assert [PACE.steps(seconds) for seconds in (5.0, 6.5, 8.0)] == [10, 10, 10]


def test_steps_that_are_never_recorded_all_take_as_long() -> None:
    assert (Pace(0.5).seconds(1000), Pace(0.5).steps(500)) == (500, 1000)


@given(times, st.integers(1, 1000), times, times, times)
def test_as_many_steps_as_a_time_is_good_for_take_that_time_at_most(
    plain: float, after: int, recording: float, replayed: float, seconds: float
) -> None:
    pace = Pace(plain, after, recording, replayed)
    steps = pace.steps(seconds)
    assert pace.seconds(steps) <= seconds * (1 + 1e-9)
    assert pace.seconds(steps + 1) >= seconds or steps == after


class Clock:
    """CPU seconds that pass only where somebody works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.recorded = 0.0, 0
        monkeypatch.setattr("time.process_time", lambda: self.now)

    def step(self, executor: Executor, size: int = 0, calls: int = 1) -> None:
        """Take 8 s, 100 s to be recorded at its time, and 1 s thereafter."""
        if not isinstance(executor, Recorder):
            self.now += 8
            return
        for _ in range(calls):
            key = ("learner", "gradient", size)
            executor.seen[key] += 1
            if executor.seen[key] == executor.patience():
                executor.replays[key] = (lambda: [], [])
                self.recorded += 1
                self.now += 100
            self.now += (1 if key in executor.replays else 8) / calls


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_long_training_is_timed_before_and_after_it_is_recorded(clock: Clock) -> None:
    assert measured(clock.step, Traced(), 10_000, 10) == Pace(8, 100, 100, 1)
    assert clock.now == 3 * 8 + 8 + 101 + 10


def test_of_a_training_that_ends_before_it_nothing_is_recorded(clock: Clock) -> None:
    assert measured(clock.step, Traced(), 8 * 140, 10) == Pace(8)
    assert clock.recorded == 0


def test_an_executor_that_records_nothing_is_timed_once(clock: Clock) -> None:
    assert measured(clock.step, Loop(), 10_000, 100) == Pace(8)
    assert clock.now == 13 * 8


def test_where_a_step_has_several_calls_it_is_recorded_after_fewer_steps(clock: Clock) -> None:
    pace = measured(lambda executor: clock.step(executor, calls=4), Traced(), 10_000, 10)
    assert pace.after == 25


def test_tasks_of_many_sizes_are_taken_for_never_recorded(clock: Clock) -> None:
    sizes = iter(range(1000))
    assert measured(lambda executor: clock.step(executor, next(sizes)), Traced(), 10_000, 10).after == math.inf


def test_what_cannot_be_recorded_is_taken_for_never_recorded(clock: Clock) -> None:
    def step(executor: Executor) -> None:
        clock.step(executor)
        assert isinstance(executor, Recorder)
        executor.replays.clear()

    assert measured(step, Traced(), 10_000, 10).after == math.inf


def test_a_clock_that_stands_still_ends_nothing(clock: Clock) -> None:
    assert measured(lambda executor: None, Loop(), 1.0, 0.1).steps(1.0) > 0
