"""What is said of points that are known: evaluations to an accuracy, the best in hindsight, and who did not say so."""

from types import SimpleNamespace

import pytest

from adjoint_meta.experiments.studies.case import Case, Point
from adjoint_meta.experiments.studies.verdicts import reach, summary, trust


def point(evaluations, error, *, curve="rk4", steps=None, rtol=None, phi=1.0, stability=0.5, own=True, failed=None):
    return Point(
        "random", 2.0, curve, "discrete", steps=steps, rtol=rtol, own=own, phi_error=phi / 10, phi_error_moved=phi,
        gradient_error=error, evaluations=evaluations, evaluations_a_task=float(evaluations), stability=stability,
        failed=failed,
    )  # fmt: skip


def case(points, check=1e-9):
    found = Case.__new__(Case)
    found.start, found.horizon, found.points = "random", 2.0, points
    found.reference = SimpleNamespace(phi_check=check, gradient_check=check, radius=5.0)
    return found


def test_steps_are_whole_and_the_coarsest_from_which_on_all_pass():
    points = [point(8 * n, e, steps=n) for n, e in [(1, 0.5), (2, 0.009), (3, 0.02), (4, 0.008), (8, 0.0005)]]
    found = reach(points, 1e-2)
    assert (found["evaluations"], found["steps"], found["coarsest"]) == (32, 4, False)
    assert reach(points, 1e-3)["steps"] == 8
    assert reach(points, 1e-4) is None


def test_tolerances_are_interpolated_on_logarithms():
    points = [point(10, 1e-1, rtol=1e-1), point(1000, 1e-5, rtol=1e-3)]
    assert reach(points, 1e-3)["evaluations"] == pytest.approx(100)
    assert reach(points, 1e-3)["rtol"] == 1e-3
    assert reach(points, 0.5)["coarsest"] is True


def test_a_failed_point_reaches_nothing():
    points = [point(10, 1e-4, steps=4), Point("random", 2.0, "rk4", "discrete", steps=8, failed="it drifted")]
    assert reach(points, 1e-2) is None


def test_the_best_is_ours_and_auto_stands_beside_it():
    points = [
        point(40, 5e-3, steps=5),
        point(90, 5e-4, steps=9),
        point(30, 5e-3, curve="euler", steps=15),
        point(24, 2e-3, curve="rkc adaptive", rtol=1e-2),
        point(5, 1e-6, curve="torchdiffeq dopri5", rtol=1e-2, own=False),
        point(48, 4e-3, curve="auto", rtol=1e-2),
        point(45, 2e-3, curve="auto", rtol=1e-3),
    ]
    found = summary(case(points))
    assert found["best"]["0.01"]["curve"] == "rkc adaptive"
    assert found["best"]["0.001"]["curve"] == "rk4"
    assert found["auto"]["0.01"]["met"] and found["auto"]["0.01"]["to_best"] == pytest.approx(2)
    assert not found["auto"]["0.001"]["met"] and found["auto"]["0.001"]["to_best"] == pytest.approx(0.5)
    assert found["rkc_to_euler"] == pytest.approx(0.8)
    assert found["reached"]["torchdiffeq dopri5"]["0.001"]["evaluations"] == 5


def test_a_gradient_worse_than_its_solution_must_say_so():
    points = [
        point(1, 0.5, phi=0.1),  # within ten times
        point(2, 2.0, phi=0.1),  # the exception
        point(3, 2.0, phi=0.1, stability=1.2),  # said so
        point(4, 2.0, phi=0.1, own=False),  # not ours
        point(5, 2.0, phi=0.1, failed="it drifted"),
        point(6, 1e-8, phi=1e-12),  # below what the reference resolves
    ]
    found = trust([case(points)])
    assert (found["points"], found["untrusted"], found["worse"]) == (4, 1, 2)
    (exception,) = found["exceptions"]
    assert (exception["gradient_error"], exception["phi_error_moved"], exception["stability"]) == (2.0, 0.1, 0.5)
