from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import regression

from adjoint_meta import Batch, StackedTasks, TaskBatch, TaskSource
from adjoint_meta.tasks import generator as generator_of


def batch(tasks: int = 3, points: int = 4) -> Batch:
    return Batch(torch.arange(tasks * points * 2.0).reshape(tasks, points, 2), torch.zeros(tasks, points, dtype=int))


def numbered(size: int) -> StackedTasks:
    """Tasks whose inputs are their own number."""
    x = torch.arange(float(size))[:, None, None].expand(size, 2, 1)
    return StackedTasks(TaskBatch(Batch(x, x), Batch(x + 0.5, x)))


class Endless(TaskSource):
    """Task i holds the number i; without end."""

    def batch(self, indices):
        x = torch.tensor(indices, dtype=torch.float64)[:, None, None]
        return TaskBatch(Batch(x, x), Batch(x, x))


def numbers(tasks: TaskBatch) -> list[int]:
    return [int(x) for x in tasks.support.x[:, 0, 0]]


# Batches


@pytest.mark.parametrize(
    ("x", "y", "mask", "error", "message"),
    [
        ([[1.0]], torch.ones(1, 1), None, TypeError, r"Batch\.x must be a tensor, got list"),
        (torch.ones(1, 1), None, None, TypeError, r"Batch\.y must be a tensor, got NoneType"),
        (torch.ones(3), torch.ones(3), None, ValueError, r"Batch\.x must have shape \[tasks, points, ...\], got \[3\]"),
        (torch.ones(3, 4), torch.ones(3), None, ValueError, r"Batch\.y must have shape"),
        (torch.ones(3, 4, 2), torch.ones(3, 5), None, ValueError, r"agree .* got x \[3, 4, 2\] and y \[3, 5\]"),
        (torch.ones(0, 4, 2), torch.ones(0, 4), None, ValueError, "at least one task and one point"),
        (torch.ones(3, 0, 2), torch.ones(3, 0), None, ValueError, "at least one task and one point"),
        (torch.ones(3, 4), torch.ones(3, 4, device="meta"), None, ValueError, "on one device, got cpu and meta"),
        (torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, 4), ValueError, r"mask must be bool of shape \[3, 4\]"),
        (torch.ones(3, 4), torch.ones(3, 4), torch.ones(3, dtype=bool), ValueError, r"got torch\.bool \[3\]"),
    ],
)
def test_batches_that_cannot_be(x, y, mask, error, message):
    with pytest.raises(error, match=message):
        Batch(x, y, mask)


def test_slices_of_tasks():
    whole = Batch(*(getattr(batch(), name) for name in "xy"), mask=torch.arange(12).reshape(3, 4) % 2 == 0)
    part = whole[1:]
    assert len(whole) == 3 and len(part) == 2
    for name in ("x", "y", "mask"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[1:])
    tasks = TaskBatch(whole, whole)[:2]
    assert len(tasks) == 2 and torch.equal(tasks.query.x, whole.x[:2])


@pytest.mark.parametrize("mask", [None, torch.arange(12).reshape(3, 4) % 2 == 0], ids=["", "mask"])
@pytest.mark.parametrize("which", [[0, 1, 2], [2], [2, 0], [1, 1]], ids=str)
def test_tasks_by_their_numbers(mask, which):
    whole = Batch(batch().x, batch().y, mask)
    part = whole.take(torch.tensor(which))
    assert len(part) == len(which)
    for k, task in enumerate(which):
        assert torch.equal(part.x[k], whole.x[task]) and torch.equal(part.y[k], whole.y[task])
        assert mask is None or torch.equal(part.mask[k], mask[task])
    assert (part.mask is None) == (mask is None) and part.y.dtype == whole.y.dtype


@pytest.mark.parametrize("what", [batch(), TaskBatch(batch(), batch())], ids=["Batch", "TaskBatch"])
def test_a_batch_is_not_indexed_by_one_number(what):
    # It would drop the axis of tasks, and points would be taken for tasks.
    with pytest.raises(TypeError, match="slice"):
        what[0]


def test_points_are_never_taken_for_tasks():
    one_dimensional = Batch(torch.ones(3, 5, 1), torch.ones(3, 5, 1))
    with pytest.raises(TypeError):
        one_dimensional[0]


def test_moving_changes_floating_point_tensors_only():
    moved = TaskBatch(batch(), batch()).to(dtype=torch.float32)
    assert moved.support.x.dtype == torch.float32 and moved.support.y.dtype == torch.int64
    assert torch.equal(moved.query.x, batch().x.float())
    on_meta = Batch(batch().x, batch().y, torch.ones(3, 4, dtype=bool)).to("meta")
    assert {on_meta.x.device.type, on_meta.y.device.type, on_meta.mask.device.type} == {"meta"}
    assert on_meta.mask.dtype == torch.bool


def test_support_and_query_hold_the_same_tasks():
    assert len(TaskBatch(batch(3, 4), batch(3, 7))) == 3
    with pytest.raises(ValueError, match="must hold the same tasks, got 3 and 2"):
        TaskBatch(batch(3), batch(2))
    with pytest.raises(ValueError, match="on one device, got cpu and meta"):
        TaskBatch(batch(), batch().to("meta"))


# Sources


def test_tasks_by_index():
    source = numbered(6)
    assert len(source) == 6
    assert numbers(source[4]) == [4]
    assert numbers(source[1:4]) == [1, 2, 3]
    assert numbers(source[::-2]) == [5, 3, 1]
    assert numbers(source[-2:]) == [4, 5]
    assert numbers(source[[3, 0, 3]]) == [3, 0, 3]
    assert numbers(source[:100]) == [0, 1, 2, 3, 4, 5]
    assert numbers(Endless()[7:10]) == [7, 8, 9]
    assert [numbers(task) for task in numbered(3)] == [[0], [1], [2]]


def test_stacked_tasks_keep_everything_together(generator):
    tasks = regression(generator, tasks=5)
    masked = TaskBatch(
        Batch(tasks.support.x, tasks.support.y, torch.rand(5, 5, generator=generator) > 0.5), tasks.query
    )
    found = StackedTasks(masked)[[4, 1]]
    for part in ("support", "query"):
        for name in ("x", "y"):
            assert torch.equal(getattr(getattr(found, part), name), getattr(getattr(masked, part), name)[[4, 1]])
    assert torch.equal(found.support.mask, masked.support.mask[[4, 1]])
    assert found.query.mask is None


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        (6, IndexError, "task 6 does not exist: this source has 6 tasks"),
        ([0, 9], IndexError, "task 9 does not exist"),
        (-1, ValueError, "task index must be at least 0"),
        ([], ValueError, "number of tasks asked for must be at least 1"),
        (slice(3, 3), ValueError, "number of tasks asked for must be at least 1"),
        ([1.0], TypeError, "task index must be a whole number"),
        (True, TypeError, "whole number"),
    ],
)
def test_tasks_that_do_not_exist(which, error, message):
    with pytest.raises(error, match=message):
        numbered(6)[which]


def test_a_source_without_end():
    with pytest.raises(TypeError, match="Endless has no end; take tasks by index"):
        len(Endless())
    with pytest.raises(ValueError, match="slices with an end"):
        Endless()[3:]
    with pytest.raises(ValueError):
        Endless()[-3:5]  # there is no end to count back from


@given(size=st.integers(1, 12), tasks=st.integers(1, 7), seed=st.integers(0, 2**32))
def test_every_epoch_covers_every_task_once(size, tasks, seed):
    source = numbered(size)
    steps = 3 * size
    drawn = [i for step in range(steps) for i in numbers(source.meta_batch(step, tasks, seed))]
    assert len(drawn) == steps * tasks
    for epoch in range(steps * tasks // size):
        assert sorted(drawn[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_and_seeds_are_shuffled_differently():
    source = numbered(20)
    orders = {tuple(numbers(source.meta_batch(step, 20, seed))) for step in range(4) for seed in range(4)}
    assert len(orders) == 16
    assert tuple(range(20)) not in orders


def test_a_meta_batch_can_be_replayed():
    source = numbered(10)
    in_order = [numbers(source.meta_batch(step, 4, seed=3)) for step in range(8)]
    backwards = [numbers(numbered(10).meta_batch(step, 4, seed=3)) for step in reversed(range(8))]
    assert in_order == backwards[::-1]


def test_an_unlimited_source_is_read_in_order():
    assert [numbers(Endless().meta_batch(step, 3, seed=9)) for step in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


def test_meta_batches_do_not_touch_the_global_generator():
    state = torch.random.get_rng_state()
    numbered(10).meta_batch(3, 4, seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)


# Seeded generators


def test_a_generator_is_a_function_of_its_key():
    assert torch.equal(torch.rand(5, generator=generator_of(3, 7)), torch.rand(5, generator=generator_of(3, 7)))


def test_different_keys_give_different_streams():
    # Keys of different length too: (seed,) may shuffle what (seed, 0) draws.
    keys = [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1), (0, 0, 0), (2**32,), (2**32, 0), (0, 2**32), (1, 2**32)]
    seeds = {key: generator_of(*key).initial_seed() for key in keys}
    for one, other in combinations(keys, 2):
        assert seeds[one] != seeds[other], f"{one} and {other} draw the same numbers"


def test_neighbouring_keys_are_uncorrelated():
    n = 2000
    draws = torch.stack([torch.rand(n, generator=generator_of(5, i)) for i in range(8)])
    correlation = torch.corrcoef(draws) - torch.eye(8)
    # 28 correlations of standard deviation 1/√n: five of those are exceeded once in 60,000 such tables.
    assert correlation.abs().max() < 5 / n**0.5
