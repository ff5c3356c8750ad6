"""Tables 4 and 5: the closed form, Heun's known errors, and the orders of what stands beside the paper's numbers."""

import math

import pytest
import torch

from adjoint_meta.experiments.studies import appendix
from adjoint_meta.experiments.studies.appendix import SCHEMES, ClosedForm, Extent, closed_form_errors, targets
from adjoint_meta.experiments.studies.appendix_report import report
from adjoint_meta.experiments.studies.published import ADJOINT_4, ADJOINT_5, AUTODIFF_4, SCHEME, STATES_4, STATES_5

# Heun's method on λ' = 2tλ with an exact y(T), in float64, by hand: independent of any solver here.
HEUN = {
    0.1: {10: 4.7e-8, 20: 5.4e-9, 50: 2.7e-10, 100: 1.7e-11},
    0.5: {10: 2.14e-5, 20: 9.25e-6, 50: 1.84e-6, 100: 4.91e-7, 200: 1.26e-7, 500: 2.06e-8, 1000: 5.2e-9},
    1.0: {10: 3.19e-3, 20: 8.18e-4, 50: 1.32e-4, 100: 3.32e-5, 200: 8.32e-6},
    2.0: {10: 0.379, 20: 6.87e-2, 50: 9.37e-3, 100: 2.23e-3, 200: 5.45e-4},
}


def test_the_pullback_of_the_closed_form_is_autograds(generator):
    y, w = torch.randn(2, 4, 1, generator=generator)
    t = torch.full((4, 1), 0.7).requires_grad_()
    y.requires_grad_()
    state, time = torch.autograd.grad(ClosedForm()(t, y), (y, t), w)
    found = ClosedForm().vjp(0.7, y.detach(), w)
    assert torch.allclose(found.state, state) and torch.allclose(found.time, time[:, 0])
    assert torch.allclose(found.value, ClosedForm()(t, y))


def test_the_closed_form_solves_its_equation():
    y0 = torch.linspace(-1, 1, 5)[:, None]
    t, h = 0.8, 1e-5
    slope = (ClosedForm.end(y0, t + h) - ClosedForm.end(y0, t - h)) / (2 * h)
    assert torch.allclose(slope, ClosedForm()(t, ClosedForm.end(y0, t)), atol=1e-9)
    assert torch.allclose(ClosedForm.end(y0, 0.0), y0)


@pytest.mark.parametrize("horizon", HEUN)
def test_the_papers_scheme_has_heuns_known_errors(horizon):
    for states, expected in HEUN[horizon].items():
        if states > 200:
            continue
        errors = closed_form_errors(SCHEMES[SCHEME], horizon, states, count=3)
        # At T = 2 ten steps of dopri5 are off themselves.
        assert float(errors.mean()) == pytest.approx(expected, rel=0.02 if horizon < 2 else 0.03)


@pytest.mark.parametrize(("scheme", "order", "states"), [("rk4", 4, 20), ("tsit5", 5, 10), ("dopri5", 5, 10)])
def test_the_others_have_their_orders(scheme, order, states):
    coarse, fine = (closed_form_errors(SCHEMES[scheme], 1.0, n, count=3).mean() for n in (states, 2 * states))
    assert math.log2(float(coarse / fine)) == pytest.approx(order, abs=0.8)


def test_hundred_states_are_enough_for_nine_digits():
    for horizon in (0.1, 0.5, 1.0):
        for scheme in ("tsit5", "dopri5"):
            assert float(closed_form_errors(SCHEMES[scheme], horizon, 100, count=3).max()) < 1e-9


def test_the_papers_tables_are_whole():
    for table, states in ((AUTODIFF_4, STATES_4), (ADJOINT_4, STATES_4), (ADJOINT_5, STATES_5)):
        assert all(len(row) == len(states) for row in table.values())
        assert all(0 < value < 1 for row in table.values() for value in row)


@pytest.fixture(scope="module")
def small():
    torch.set_default_dtype(torch.float64)
    return appendix.table5(
        Extent(count=2, points=5, states5=(10, 20), horizons5=(0.1, 0.5), own_states=40, reference=1e-8)
    )


def test_table_5_beats_the_papers_a_hundredfold(small):
    assert [(e["horizon"], e["states"]) for e in small] == [(T, n) for T in (0.1, 0.5) for n in (10, 20)]
    for entry in small:
        assert entry["reference_check"] < 1e-6
        for against in ("own", "reference"):
            assert entry["rk4"][against]["mean"] < entry["paper"] / 100
        own, tight = (entry[SCHEME][against]["mean"] for against in ("own", "reference"))
        assert entry["rk4"]["reference"]["mean"] < tight / 100
        assert own == pytest.approx(tight, rel=0.3)


def test_the_papers_scheme_is_of_second_order(small):
    for coarse, fine in zip(small[::2], small[1::2], strict=True):
        ratio = coarse[SCHEME]["reference"]["mean"] / fine[SCHEME]["reference"]["mean"]
        assert math.log2(ratio) == pytest.approx(2, abs=0.5)


def test_the_report_shows_both_beside_the_papers(small):
    first = appendix.table4(Extent(count=2, states4=(10, 100)))
    found = targets(first, small)
    assert found["table4_largest_at_100"]["dopri5"] < 1e-9
    assert found["table5_least_gain"]["reference"] > 100
    text = report({"table4": first, "table5": small, "targets": found, "initialisations": 3, "points": 10})
    assert "| T = 1, 100 | 2.2e-05 | 1.7e-05 |" in text
    assert "| T = 0.5, 20 | 5.5e-03 |" in text
