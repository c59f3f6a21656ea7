"""How long the encoder is waited for."""

import contextlib

import pytest

from longtide_server.patience import Patience


def costly(seconds) -> Patience:
    """Answers have taken so long for a long time."""
    patience = Patience()
    for _ in range(200):
        patience.answered(seconds)
    return patience


def waiting(patience, callers) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for _ in range(callers):
        stack.enter_context(patience.waiting())
    return stack


def test_a_share_of_the_time_is_left_for_the_answer():
    assert Patience().for_encoder_s(1.0) == pytest.approx(0.8)


def test_of_little_time_enough_for_an_answer_is_left():
    assert Patience().for_encoder_s(0.02) == pytest.approx(0.01)
    assert Patience().for_encoder_s(0.005) == 0.0


def test_the_more_wait_the_earlier_they_are_answered():
    patience = costly(0.004)
    with waiting(patience, 50):
        assert patience.for_encoder_s(0.5) == pytest.approx(0.1)  # 50 answers of 4 ms, and as much around them
    with waiting(patience, 5):
        assert patience.for_encoder_s(0.5) == pytest.approx(0.4)
    assert patience.for_encoder_s(0.5) == pytest.approx(0.4)


def test_where_there_is_no_time_nobody_waits():
    patience = costly(0.004)
    with waiting(patience, 500):
        assert patience.for_encoder_s(0.5) == 0.0


def test_before_there_was_an_answer_it_is_not_thought_to_cost_nothing():
    patience = Patience()
    with waiting(patience, 50):
        assert patience.for_encoder_s(0.5) == pytest.approx(0.2)


def test_one_slow_answer_is_not_what_they_cost():
    patience = costly(0.001)
    patience.answered(0.101)
    with waiting(patience, 10):
        assert patience.for_encoder_s(1.0) == pytest.approx(1.0 - 2 * 10 * 0.011)


def test_who_fails_waits_no_longer():
    patience = costly(1.0)
    with contextlib.suppress(ValueError), patience.waiting():
        raise ValueError
    assert patience.for_encoder_s(1.0) == pytest.approx(0.8)
