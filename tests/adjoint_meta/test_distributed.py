"""Several processes against one: the same meta-steps and tests to rounding, and one failure for all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))  # the script beside this file
import together

from adjoint_meta import SolverError, StackedTasks
from adjoint_meta.distributed import ALONE, World, launched, processes

SIZE = 3  # shares of 1, 2 and 2 of five tasks
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


@pytest.fixture(scope="module")
def found(tmp_path_factory, root):
    """What each of three processes found."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(SIZE)]
    paths = os.pathsep.join([str(root), str(root / "tests")])
    subprocess.run(
        [*command, together.__file__, str(folder)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=240,
    )
    return [torch.load(folder / f"found-{rank}.pt", weights_only=False) for rank in range(SIZE)]


@pytest.fixture(scope="module")
def alone():
    """What one process finds."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield together.same_as_alone(ALONE)
    torch.set_default_dtype(before)


def distance(one, other) -> float:
    """The largest difference, relative to the larger of the two and to 1."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        return max(distance(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        assert len(one) == len(other)
        return max(map(distance, one, other))
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    one, other = torch.as_tensor(one), torch.as_tensor(other)
    assert one.shape == other.shape and one.dtype == other.dtype
    return float(((one - other).abs() / one.abs().clamp(min=1)).max())


@pytest.mark.parametrize("name", [*together.LEARNERS, "lbfgs", "skipped"])
def test_training_is_that_of_one_process(found, alone, name):
    expected = alone[name]
    for each in found:
        got = each["same"][name]
        assert distance(got["state"], expected["state"]) < 1e-9
        assert distance(got["losses"], expected["losses"]) < 1e-9
        assert got["progress"].step == expected["progress"].step
        assert got["progress"].skipped == expected["progress"].skipped == (name == "skipped")
    # Something was learned, by what all of the tasks say.
    start = together.learner(name if name in together.LEARNERS else "rk4").state_dict()
    state = {key: value for key, value in expected["state"].items() if key in start}
    assert any(distance(start[key], value) > 1e-2 for key, value in state.items())


def test_processes_stay_the_same_bit_for_bit(found):
    for name in together.LEARNERS:
        states = [each["same"][name]["state"] for each in found]
        assert all(torch.equal(states[0][key], state[key]) for state in states for key in state)


@pytest.mark.parametrize("count", [1, 4, 7])  # fewer than processes, and numbers that they do not divide
def test_every_process_gets_the_whole_test(found, alone, count):
    expected = alone[f"{count} tasks"]
    assert len(expected["before"]) == count
    for each in found:
        assert distance(each["same"][f"{count} tasks"], expected) < 1e-13


def test_the_first_process_decides_the_weights(found, alone):
    for each in found:
        assert distance(each["weights"]["state"], alone["rk4"]["state"]) < 1e-9


def test_data_parallel_learner(found):
    batch = together.tasks(2 * SIZE)
    for name in ("rk4", "head"):
        learner = together.learner(name)
        learner(batch).backward()
        expected = {key: p.grad for key, p in learner.named_parameters()}
        assert all(distance(each["parallel"][name], expected) < 1e-13 for each in found)
    # Steps that a task chooses depend a little on where power iteration starts; here it is where the first one's did.
    learner = together.learner("dopri5")
    learner(batch[World(0, SIZE).share(len(batch))])
    learner(batch).backward()
    expected = {key: p.grad for key, p in learner.named_parameters()}
    assert all(distance(each["parallel"]["dopri5"], expected) < 1e-13 for each in found)


def test_a_meta_step_is_one_all_reduce(found):
    theta_psi = 17
    expected = dict.fromkeys(together.LEARNERS, theta_psi + 4)
    expected["rk4"] += 1 + 17  # horizon and rates
    expected["dopri5"] += 2 + 17  # horizon and proximal, and the direction of largest curvature
    expected["rkc"] += 17
    assert all(each["sent"] == {name: [size] * 2 for name, size in expected.items()} for each in found)


def test_one_wish_stops_all_at_one_meta_step(found):
    assert [each["stopped"] for each in found] == [5] * SIZE


def test_an_error_on_one_process_is_raised_on_all(found):
    for rank, each in enumerate(found):
        errors = each["failures"]
        mine = rank == SIZE - 1
        prefix = "" if mine else f"process {SIZE - 1}: "
        assert errors["gather"] == ("ValueError", f"{prefix}bad", mine)
        assert errors["first"][:2] == (("FileNotFoundError", "gone") if rank == 0 else ("OSError", "process 0: gone"))
        assert errors["bug"][1] == ("'oops'" if mine else "process 2: KeyError: 'oops'")
        assert errors["the worse of two"][:2] == ("TypeError", f"{prefix}no type")
        assert errors["evaluate"][:2] == ("SolverError", f"{prefix}far")
        assert errors["all"][:2] == ("ValueError", "all of us")
        assert errors["position"] == (rank, SIZE, [0, 1, 2])


# Without other processes


def test_shares_cover_all_tasks_once_and_evenly():
    for size in range(1, 9):
        for count in range(30):
            shares = [World(rank, size).share(count) for rank in range(size)]
            assert [task for share in shares for task in range(count)[share]] == list(range(count))
            lengths = [share.stop - share.start for share in shares]
            assert max(lengths) - min(lengths) <= 1


def test_a_source_makes_only_the_share():
    source = StackedTasks(together.tasks(7))
    whole = source.meta_batch(2, 5, seed=3)
    for size in (1, 2, 5):
        parts = [source.meta_batch(2, 5, 3, World(rank, size).share(5)) for rank in range(size)]
        assert torch.equal(torch.cat([part.support.x for part in parts]), whole.support.x)
    asked = []
    source.batch = lambda indices: asked.extend(indices) or whole
    source.meta_batch(0, 6, 3, slice(4, 6))
    assert len(asked) == 2


def test_a_process_alone_adds_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not launched()
    with processes() as world:
        assert world is ALONE and world.leads and not torch.distributed.is_initialized()
        assert world.gather(lambda: 3) == [3] and world.first(lambda: 4) == 4
        assert world.share(5) == slice(0, 5)
        assert world.stops(lambda: True) and not world.stops(lambda: False)
        assert world.reports(ValueError())
        weights = [torch.ones(2)]
        world.spread(weights)
        batch = together.tasks(2)
        assert world.rows(batch, lambda part: part.support.x) is batch.support.x
        with pytest.raises(SolverError, match="mine"), world.together():
            raise SolverError("mine")


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_timeout_must_be_seconds(monkeypatch, text):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("ADJOINT_META_TIMEOUT", text)
    expected = f"ADJOINT_META_TIMEOUT must be a positive number of seconds, got '{text}'"
    with pytest.raises(ValueError, match=expected), processes():
        raise AssertionError("nobody answers")


def test_one_process_of_torchrun_is_alone(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not launched()
