"""Which of several ways is the fastest, by a clock of our own."""

import pytest
import torch

from adjoint_meta import fastest as module
from adjoint_meta.engine import Engine
from adjoint_meta.evaluations import Evaluations


@pytest.fixture
def way(monkeypatch):
    """A way that takes as many seconds as it is told, in turns."""
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def make(*seconds):
        calls = []

        def run():
            now[0] += seconds[len(calls) % len(seconds)]
            calls.append(1)
            return torch.zeros(1)

        return run

    return make


def test_the_least_time_of_each_counts(way):
    assert module.fastest([way(1.0), way(9.0, 0.5, 9.0)]) == 1
    assert module.fastest([way(1.0, 0.1, 5.0), way(0.5)]) == 0


def test_about_as_fast_is_no_reason_to_leave_the_first(way):
    assert module.fastest([way(1.0), way(0.9), way(0.85)]) == 0
    assert module.fastest([way(1.0), way(0.75), way(0.6)]) == 2


def test_a_way_that_does_not_fit_into_memory_is_not_taken(way):
    def large():
        raise torch.OutOfMemoryError("out of memory")

    assert module.fastest([way(1.0), large]) == 0
    assert module.fastest([large, way(1.0)]) == 1


def test_an_engine_measures_once_and_remembers(way):
    engine, asked = Engine("eager", Evaluations()), []

    def counted():
        asked.append(1)
        return way(1.0)()

    for _ in range(3):
        assert engine.choose("a shape", [counted, way(0.1)]) == 1
    assert len(asked) == 6
    other = Engine("auto", Evaluations())
    other.load(engine.state())
    assert other.choose("a shape", []) == 1
