"""The pace of training: expected values worked out by hand."""

from __future__ import annotations

import json

import pytest

from smollora.train.schedule import Pace


def test_the_rate_warms_up_then_falls_to_nothing_on_a_straight_line() -> None:
    pace = Pace(planned=10, most=10, warmup=2, shape="linear")
    assert [pace.factor(step) for step in (0, 1, 2, 6, 10)] == [0.5, 1.0, 1.0, 0.5, 0.0]


def test_a_cosine_is_at_one_half_in_the_middle() -> None:
    pace = Pace(planned=10, most=10, warmup=0, shape="cosine")
    assert pace.factor(5) == pytest.approx(0.5)


def test_where_epochs_may_be_added_the_rate_keeps_a_tenth() -> None:
    pace = Pace(planned=30, most=50, warmup=0, shape="linear")
    assert pace.factor(30) == pytest.approx(0.1)
    assert pace.factor(45) == pytest.approx(0.1)


def test_a_spike_halves_the_rate_once_and_is_recorded() -> None:
    pace = Pace(planned=100, most=100, warmup=0, shape="constant")
    for step in range(1, 31):
        assert not pace.note_loss(step, 1.0)
    assert not pace.note_loss(31, 3.5)
    assert not pace.note_loss(32, 4.0)
    assert pace.note_loss(33, 9.0)
    assert not pace.note_loss(34, 9.0)
    assert pace.factor(35) == 0.5
    assert [event["step"] for event in pace.events] == [33]


def test_one_or_two_odd_steps_are_no_spike() -> None:
    """One step of four times the usual loss had halved the rate of a whole run."""
    pace = Pace(planned=100, most=100, warmup=0, shape="constant")
    for step, loss in enumerate([1.0] * 40 + [4.0, 3.9, 1.0, 4.0, 1.2, 4.0, 4.0, 1.0], 1):
        assert not pace.note_loss(step, loss)
    assert pace.factor(50) == 1.0


def test_a_high_loss_in_the_first_steps_is_no_spike() -> None:
    pace = Pace(planned=100, most=100, warmup=0, shape="constant")
    assert not pace.note_loss(1, 0.5)
    assert not pace.note_loss(2, 9.0)
    assert pace.factor(3) == 1.0


def test_epochs_are_added_while_the_validation_loss_falls_and_not_after() -> None:
    pace = Pace(planned=30, most=50, warmup=0, shape="linear")
    assert not pace.note_validation(10, 2.0)
    assert not pace.note_validation(20, 1.8)
    assert not pace.note_validation(30, 1.7)
    assert pace.note_validation(40, 1.75)
    assert [event["step"] for event in pace.events] == [30]


def test_the_planned_epochs_are_taken_even_if_the_validation_loss_rises() -> None:
    pace = Pace(planned=30, most=50, warmup=0, shape="linear")
    assert not pace.note_validation(10, 2.0)
    assert not pace.note_validation(20, 2.5)
    assert pace.note_validation(30, 2.6)


def test_no_more_than_the_most_epochs_are_taken() -> None:
    pace = Pace(planned=30, most=40, warmup=0, shape="linear")
    for step, loss in ((10, 2.0), (20, 1.5), (30, 1.2)):
        assert not pace.note_validation(step, loss)
    assert pace.note_validation(40, 1.0)


def test_a_loss_that_has_risen_far_and_stays_there_diverges() -> None:
    pace = Pace(planned=100, most=100, warmup=0, shape="constant")
    for step in range(1, 11):
        pace.note_loss(step, 2.0)
    for step in range(11, 21):
        pace.note_loss(step, 5.0)
        assert pace.diverged is None, "half of the latest twenty are as they were"
    pace.note_loss(21, 5.0)
    assert pace.diverged == (2.0, 5.0)


def test_a_small_loss_may_double() -> None:
    pace = Pace(planned=100, most=100, warmup=0, shape="constant")
    for step in range(1, 31):
        pace.note_loss(step, 0.1 if step < 6 else 0.5)
    assert pace.diverged is None


def test_a_pace_that_is_restored_goes_on_as_it_would_have() -> None:
    losses = [1.0] * 30 + [3.5] * 3 + [1.0] * 60 + [4.0] * 3 + [1.0] * 40 + [4.0] * 3
    whole = Pace(planned=100, most=200, warmup=5, shape="cosine")
    first = Pace(planned=100, most=200, warmup=5, shape="cosine")
    for step, loss in enumerate(losses, 1):
        whole.note_loss(step, loss)
    for step, loss in enumerate(losses[:50], 1):
        first.note_loss(step, loss)
    then = Pace(planned=100, most=200, warmup=5, shape="cosine")
    then.restore(json.loads(json.dumps(first.state())))
    for step, loss in enumerate(losses[50:], 51):
        then.note_loss(step, loss)
    assert then.state() == whole.state()
    assert [then.factor(step) for step in range(200)] == [whole.factor(s) for s in range(200)]
    assert [event["step"] for event in whole.events] == [33, 96]
