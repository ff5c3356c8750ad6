"""Regression families against the formulas of Li et al. 2023, section 5.1, and Finn et al. 2017, written in NumPy."""

import math

import numpy as np
import pytest
import torch

from adjoint_meta.experiments.regression import (
    FAMILIES,
    TEST,
    TRAIN,
    VALIDATION,
    RegressionTasks,
)

BOX = {"sine": (-5.0, 5.0, 1), "cosmixture": (-1.0, 1.0, 2), "alpine": (-10.0, 10.0, 2)}
RANGES = {
    "sine": [(0.1, 5.0), (0.0, math.pi)],
    "cosmixture": [(0.1, 1.0), (0.5 * math.pi, 2.0 * math.pi), (3.0, 6.0)],
    "alpine": [(-5 * math.pi / 12, 5 * math.pi / 12)] * 2,
}


def formula(name, parameters, x):
    """One value at the point x [inputs]."""
    if name == "sine":
        amplitude, phase = parameters
        return amplitude * math.sin(x[0] - phase)
    if name == "cosmixture":
        amplitude, frequency, phase = parameters
        return -0.1 * sum(amplitude * math.cos(frequency * xi + phase) for xi in x) - sum(xi**2 for xi in x)
    return sum(abs(xi * math.sin(xi + phase) + 0.1 * xi) for xi, phase in zip(x, parameters, strict=True))


def tasks_of(name, **options):
    small = {"train_tasks": 6, "validation_tasks": 3, "test_tasks": 5, "shots": 7, "queries": 8, "test_queries": 9}
    return RegressionTasks(FAMILIES[name](), **{**small, **options})


@pytest.fixture(params=sorted(FAMILIES))
def name(request):
    return request.param


def test_values_are_those_of_the_formula(name, generator):
    family = FAMILIES[name]()
    low, high, inputs = BOX[name]
    uniform = torch.rand(4, len(RANGES[name]), generator=generator)
    parameters = family.parameters(uniform)
    x = low + (high - low) * torch.rand(4, 10, inputs, generator=generator)
    found = family.values(parameters, x)
    assert found.shape == (4, 10, 1)
    for task in range(4):
        scaled = [a + (b - a) * float(u) for (a, b), u in zip(RANGES[name], uniform[task], strict=True)]
        np.testing.assert_allclose(parameters[task], scaled, rtol=1e-14, atol=1e-14)
        expected = [formula(name, scaled, point) for point in x[task].tolist()]
        np.testing.assert_allclose(found[task, :, 0], expected, rtol=1e-12, atol=1e-12)


def test_known_values():
    def value(name, parameters, x):
        return float(FAMILIES[name]().values(torch.tensor([parameters]), torch.tensor([[x]]))[0, 0, 0])

    assert value("sine", [2.0, math.pi / 2], [math.pi]) == pytest.approx(2.0)
    assert value("cosmixture", [1.0, math.pi, math.pi], [1.0, 0.5]) == pytest.approx(-0.1 - 1.25)
    assert value("alpine", [0.0, 0.0], [math.pi / 2, -math.pi / 2]) == pytest.approx(math.pi / 2 * (1.1 + 0.9))


def test_inputs_and_parameters_fill_their_ranges(name):
    """Of 4000 uniform draws the extremes lie within 1 % of the ends (missed once in e⁴⁰)."""
    family = FAMILIES[name]()
    low, high, inputs = BOX[name]
    drawn = tasks_of(name).draw(TRAIN, range(300), 8)
    x = torch.cat([drawn.support.x, drawn.query.x], dim=1)
    assert x.shape == (300, 15, inputs) and x.dtype == torch.float64
    assert low <= x.min() < low + 0.01 * (high - low) and high - 0.01 * (high - low) < x.max() <= high
    ends = torch.tensor([[0.0] * family.parameter_count, [1.0] * family.parameter_count])
    for column, (a, b) in zip(family.parameters(ends).T, RANGES[name], strict=True):
        assert column.tolist() == pytest.approx([a, b])


def test_values_drawn_belong_to_a_task_of_the_family(name):
    """All points of a task, support and query, share parameters inside the ranges: found again by least squares."""
    from scipy.optimize import least_squares

    drawn = tasks_of(name, shots=12, queries=12).draw(TEST, [3, 11], 12)
    for task in range(2):
        x = torch.cat([drawn.support.x, drawn.query.x], dim=1)[task].numpy()
        y = torch.cat([drawn.support.y, drawn.query.y], dim=1)[task, :, 0].numpy()

        def residual(parameters, x=x, y=y):
            return [formula(name, parameters, point) - value for point, value in zip(x.tolist(), y, strict=True)]

        bounds = np.array(RANGES[name]).T
        starts = np.random.default_rng(0).uniform(*bounds, size=(12, bounds.shape[1]))
        best = min(least_squares(residual, start, bounds=bounds, xtol=1e-15, gtol=1e-15).cost for start in starts)
        assert best < 1e-12


def test_a_task_is_the_same_whichever_batch_it_is_drawn_in(name):
    tasks = tasks_of(name)
    together, alone = tasks.draw(TRAIN, [4, 2, 4, 9], 8), tasks.draw(TRAIN, [2], 8)
    for part in ("support", "query"):
        one, other = getattr(together, part), getattr(alone, part)
        assert torch.equal(one.x[1], other.x[0]) and torch.equal(one.y[1], other.y[0])
        assert torch.equal(one.x[0], one.x[2]) and not torch.equal(one.x[0], one.x[3])


def test_a_task_does_not_change_with_how_many_there_are(name):
    few, many = tasks_of(name, train_tasks=2), tasks_of(name, train_tasks=40)
    assert torch.equal(few.draw(TRAIN, [1], 8).support.x, many.draw(TRAIN, [1], 8).support.x)


def test_streams_and_seeds_differ(name):
    tasks = tasks_of(name)
    drawn = [tasks.draw(stream, range(5), 8).support.x for stream in (TRAIN, VALIDATION, TEST)]
    drawn.append(tasks_of(name, seed=1).draw(TRAIN, range(5), 8).support.x)
    values = torch.cat([x.flatten() for x in drawn])
    assert len(values.unique()) == len(values)


def test_the_default_dtype_changes_nothing(name):
    found = []
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        source, _, test, _ = tasks_of(name).build()
        found.append((source[0:3].support.y, test.query.x))
    assert found[0][0].dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def all_points(tasks, what):
    source, validation, test, _ = tasks.build()
    return torch.cat(
        [
            getattr(batch, what).flatten(0, 1)
            for part in (source[0 : len(source)], validation, test)
            if part is not None
            for batch in (part.support, part.query)
        ]
    ).numpy()


@pytest.mark.parametrize("validation", [0, 3])
def test_inputs_and_targets_are_standardised_over_all_tasks(name, validation):
    tasks = tasks_of(name, validation_tasks=validation)
    for what in ("x", "y"):
        points = all_points(tasks, what)
        assert len(points) == 6 * 15 + validation * 15 + 5 * 16
        np.testing.assert_allclose(points.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(points.std(axis=0, ddof=1), 1, rtol=1e-12)


def test_standardised_tasks_are_the_drawn_ones_shifted_and_scaled(name):
    tasks = tasks_of(name)
    source, validation, test, _ = tasks.build()
    raw = [tasks.draw(TRAIN, range(6), 8), tasks.draw(VALIDATION, range(3), 8), tasks.draw(TEST, range(5), 9)]
    points = {
        what: torch.cat([getattr(b, what).flatten(0, 1) for t in raw for b in (t.support, t.query)]).numpy()
        for what in ("x", "y")
    }
    for drawn, built in zip(raw, (source[0:6], validation, test), strict=True):
        for part in ("support", "query"):
            for what, all_ in points.items():
                value = getattr(getattr(drawn, part), what).numpy()
                expected = (value - all_.mean(axis=0)) / all_.std(axis=0, ddof=1)
                np.testing.assert_allclose(getattr(getattr(built, part), what), expected, rtol=1e-10, atol=1e-12)


def test_shapes_are_those_asked_for(name):
    inputs = BOX[name][2]
    source, validation, test, _ = tasks_of(name).build()
    assert len(source) == 6 and len(validation) == 3 and len(test) == 5
    assert source[0:6].support.x.shape == (6, 7, inputs) and source[0:6].query.y.shape == (6, 8, 1)
    assert validation.query.x.shape == (3, 8, inputs)
    assert test.support.x.shape == (5, 7, inputs) and test.query.x.shape == (5, 9, inputs)
    assert tasks_of(name, validation_tasks=0).build()[1] is None


def test_the_scene_is_the_test_task_on_a_grid(name):
    low, high, inputs = BOX[name]
    tasks = tasks_of(name, seed=2)
    _, _, test, units = tasks.build()
    scene = tasks.scene(3, units)
    assert torch.equal(scene.support.x[0], test.support.x[3]) and torch.equal(scene.support.y[0], test.support.y[3])

    count = 201 if inputs == 1 else 61
    assert len(scene.axes) == inputs and all(
        np.allclose(axis, np.linspace(low, high, count), atol=1e-12) for axis in scene.axes
    )
    grid = np.stack(np.meshgrid(*scene.axes, indexing="ij"), axis=-1).reshape(-1, inputs)
    np.testing.assert_allclose(scene.x * units.x_deviation + units.x_mean, grid, atol=1e-10)
    np.testing.assert_allclose(
        scene.support_x, (scene.support.x[0] * units.x_deviation + units.x_mean).numpy(), atol=1e-10
    )
    # the parameters again from the points of the test task, then the formula on the grid
    from scipy.optimize import least_squares

    x = torch.cat([test.support.x, test.query.x], 1)[3] * units.x_deviation + units.x_mean
    y = torch.cat([test.support.y, test.query.y], 1)[3] * units.y_deviation + units.y_mean

    def residual(parameters):
        return [formula(name, parameters, p) - v for p, v in zip(x.tolist(), y[:, 0].tolist(), strict=True)]

    bounds = np.array(RANGES[name]).T
    starts = np.random.default_rng(0).uniform(*bounds, size=(12, bounds.shape[1]))
    fits = [least_squares(residual, start, bounds=bounds, xtol=1e-15, gtol=1e-15) for start in starts]
    best = min(fits, key=lambda fit: fit.cost)
    assert best.cost < 1e-12
    shown = (scene.y * units.y_deviation + units.y_mean).numpy()
    np.testing.assert_allclose(shown, [formula(name, best.x, point) for point in grid], atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_tasks": 0}, "train_tasks must be at least 1"),
        ({"test_tasks": 0}, "test_tasks must be at least 1"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"queries": -1}, "queries must be at least 1"),
        ({"test_queries": 0}, "test_queries must be at least 1"),
        ({"validation_tasks": -1}, "validation_tasks must be at least 0"),
        ({"shots": 2.5}, "shots must be a whole number"),
    ],
)
def test_counts_are_checked(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tasks_of("sine", **options)
