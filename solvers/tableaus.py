"""Explicit Runge-Kutta tableaus: frozen data that prove themselves when they are built."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from .butcher import ButcherTableau as ButcherTableau


def _row(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(entry) for entry in text.split())


def _tableau(
    name: str,
    order: int,
    c: str,
    a: Sequence[str],
    b: str,
    source: str,
    embedded: str = "",
    embedded_order: int = 0,
    quartic: str = "",
) -> ButcherTableau:
    return ButcherTableau(
        name=name,
        order=order,
        a=((), *map(_row, a)),
        b=_row(b),
        c=_row(c),
        source=source,
        embedded=_row(embedded) if embedded else None,
        embedded_order=embedded_order,
        quartic=_row(quartic) if quartic else None,
    )


EULER = _tableau("euler", 1, "0", [], "1", "Euler 1768; Hairer, Nørsett, Wanner, Solving ODEs I, I.7")
MIDPOINT = _tableau(
    "midpoint", 2, "0 1/2", ["1/2"], "0 1", "Runge 1895; Hairer, Nørsett, Wanner, Solving ODEs I, II.1 (1.4)"
)
HEUN = _tableau(
    "heun",
    2,
    "0 1",
    ["1"],
    "1/2 1/2",
    "Heun 1900; the explicit trapezoidal rule, Hairer, Nørsett, Wanner, Solving ODEs I, II.1",
    embedded="1 0",
    embedded_order=1,
)
BOSH3 = _tableau(
    "bosh3",
    3,
    "0 1/2 3/4 1",
    ["1/2", "0 3/4", "2/9 1/3 4/9"],
    "2/9 1/3 4/9 0",
    "Bogacki and Shampine, A 3(2) pair of Runge-Kutta formulas, Appl. Math. Lett. 2 (1989)",
    embedded="7/24 1/4 1/3 1/8",
    embedded_order=2,
)
RK4 = _tableau(
    "rk4",
    4,
    "0 1/2 1/2 1",
    ["1/2", "0 1/2", "0 0 1"],
    "1/6 1/3 1/3 1/6",
    "Kutta 1901; Hairer, Nørsett, Wanner, Solving ODEs I, II.1, Table 1.2",
)
DOPRI5 = _tableau(
    "dopri5",
    5,
    "0 1/5 3/10 4/5 8/9 1 1",
    [
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ],
    "35/384 0 500/1113 125/192 -2187/6784 11/84 0",
    "Dormand and Prince, A family of embedded Runge-Kutta formulae, J. Comput. Appl. Math. 6 (1980)",
    embedded="5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
    embedded_order=4,
    # Shampine, Some practical Runge-Kutta formulas, Math. Comp. 46 (1986); Hairer, Nørsett, Wanner II.6 and CONTD5.
    quartic="-12715105075/11282082432 0 87487479700/32700410799 -10690763975/1880347072 701980252875/199316789632 "
    "-1453857185/822651844 69997945/29380423",
)
TSIT5 = _tableau(
    "tsit5",
    5,
    "0 0.161 0.327 0.9 0.9800255409045097 1 1",
    [
        "0.161",
        "-0.008480655492356989 0.335480655492357",
        "2.8971530571054935 -6.359448489975075 4.3622954328695815",
        "5.325864828439257 -11.748883564062828 7.4955393428898365 -0.09249506636175525",
        "5.86145544294642 -12.92096931784711 8.159367898576159 -0.071584973281401 -0.028269050394068383",
        "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774",
    ],
    "0.09646076681806523 0.01 0.4798896504144996 1.379008574103742 -3.290069515436081 2.324710524099774 0",
    "Tsitouras, Runge-Kutta pairs of order 5(4), Comput. Math. Appl. 62 (2011), Table 1",
    # The paper prints b̂ − b with the last weight's sign reversed; with +1/66 for b̂_7 the conditions of order 4 hold.
    embedded="0.09468075576583945 0.009183565540343254 0.4877705284247616 1.234297566930479 -2.7077123499835256 "
    "1.866628418170587 0.015151515151515152",
    embedded_order=4,
    # The leading coefficients of the paper's b_i(ϑ); its other coefficients follow from them.
    quartic="-1.0530884977290216 0.1017 2.490627285651252793 -16.54810288924490272 47.37952196281928122 "
    "-34.87065786149660974 2.5",
)

ADAPTIVE_HEUN = _tableau(
    "adaptive_heun",
    2,
    "0 1",
    ["1"],
    "1/2 1/2",
    "Heun's method with the weights 0 1 embedded, so that its error estimate is minus that of heun; torchdiffeq",
    embedded="0 1",
    embedded_order=1,
)
FEHLBERG2 = _tableau(
    "fehlberg2",
    2,
    "0 1/2 1",
    ["1/2", "1/256 255/256"],
    "1/512 255/256 1/512",
    "Fehlberg, Low-order classical Runge-Kutta formulas with stepsize control, NASA TR R-315 (1969), RK1(2)",
    embedded="1/256 255/256 0",
    embedded_order=1,
)
HEUN3 = _tableau(
    "heun3",
    3,
    "0 1/3 2/3",
    ["1/3", "0 2/3"],
    "1/4 0 3/4",
    "Heun 1900; Hairer, Nørsett, Wanner, Solving ODEs I, II.1, Table 1.1",
)
RK38 = _tableau(
    "rk4_38",
    4,
    "0 1/3 2/3 1",
    ["1/3", "-1/3 1", "1 -1 1"],
    "1/8 3/8 3/8 1/8",
    "Kutta 1901, the 3/8 rule; Hairer, Nørsett, Wanner, Solving ODEs I, II.1, Table 1.2",
)

TABLEAUS = {tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN, BOSH3, RK4, DOPRI5, TSIT5)}
# Methods that users meet elsewhere and that `odeint` answers to.
MORE_TABLEAUS = {tableau.name: tableau for tableau in (ADAPTIVE_HEUN, FEHLBERG2, HEUN3, RK38)}
