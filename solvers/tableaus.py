"""Explicit Runge-Kutta tableaus: frozen data that prove themselves when they are built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations_with_replacement

# A rooted tree is the sorted tuple of its subtrees; () is the single node.
Tree = tuple["Tree", ...]

# Tsit5 is published as decimals of 16 digits, so its conditions hold to rounding; the others hold exactly.
_ROUNDING = Fraction(1, 10**13)


@dataclass(frozen=True)
class ButcherTableau:
    """Coefficients of an explicit Runge-Kutta method, checked at construction.

    One step of size h from y is

        k_i = f(t + c_i h, Y_i),   Y_i = y + h Σ_{j<i} a_ij k_j,   y⁺ = y + h Σ_i b_i k_i,

    and h Σ_i (b_i − b̂_i) k_i estimates its error when an embedded method b̂ is given.

    Args:
        name: how users call the method.
        order: order of convergence; the order conditions of every rooted tree up to it are verified.
        a: strictly lower triangular part, row i holding a_i1 … a_i,i−1 (the first row is empty).
        b: weights of the solution.
        embedded: weights b̂ of the embedded method, or ``None``.
        embedded_order: its order, verified too.
        source: where the coefficients are printed.

    Raises:
        ValueError: if the shapes do not fit or an order condition fails.
    """

    name: str
    order: int
    a: tuple[tuple[Fraction, ...], ...]
    b: tuple[Fraction, ...]
    source: str
    c: tuple[Fraction, ...]
    embedded: tuple[Fraction, ...] | None = None
    embedded_order: int = 0

    def __post_init__(self) -> None:
        stages = len(self.b)
        if [len(row) for row in self.a] != list(range(stages)) or len(self.c) != stages:
            raise ValueError(f"{self.name}: a must be strictly lower triangular with {stages} rows, c of {stages}")
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            if abs(sum(row) - node) > _ROUNDING:
                raise ValueError(f"{self.name}: row {i} of a sums to {sum(row)}, its node is {node}")
        self._check_order(self.b, self.order)
        if self.embedded is not None:
            if len(self.embedded) != stages:
                raise ValueError(f"{self.name}: the embedded weights must be {stages}, got {len(self.embedded)}")
            if self.embedded_order < 1:
                raise ValueError(f"{self.name}: embedded weights need their order, got {self.embedded_order}")
            self._check_order(self.embedded, self.embedded_order)

    def _check_order(self, weights: Sequence[Fraction], order: int) -> None:
        for nodes in range(1, order + 1):
            for tree in rooted_trees(nodes):
                value = sum((w * p for w, p in zip(weights, self._stage_products(tree), strict=True)), Fraction(0))
                if abs(value - Fraction(1, _density(tree))) > _ROUNDING:
                    raise ValueError(
                        f"{self.name}: the condition of order {nodes} for the tree {tree} gives {value}, "
                        f"expected 1/{_density(tree)}"
                    )

    def _stage_products(self, tree: Tree) -> list[Fraction]:
        """Return Φ_i(tree) = Π over subtrees s of Σ_j a_ij Φ_j(s), for each stage i."""
        products = [Fraction(1)] * len(self.b)
        for subtree in tree:
            inner = self._stage_products(subtree)
            for i, row in enumerate(self.a):
                products[i] *= sum((a * p for a, p in zip(row, inner, strict=False)), Fraction(0))
        return products

    @property
    def stages(self) -> int:
        """Number of stages, those of the embedded method included."""
        return len(self.b)

    @cached_property
    def solution_stages(self) -> int:
        """Number of leading stages that the solution needs when no error is estimated (dopri5: 6 of 7)."""
        return max(i for i, weight in enumerate(self.b) if weight != 0) + 1

    @property
    def first_same_as_last(self) -> bool:
        """Whether the last stage is f at the end of the step, and so the next step's first stage."""
        return self.c[-1] == 1 and self.a[-1] == self.b[:-1] and self.b[-1] == 0

    @cached_property
    def floats(self) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...], tuple[float, ...]]:
        """The coefficients (a, b, c) rounded once to float64, for use in a step."""
        return (
            tuple(tuple(map(float, row)) for row in self.a),
            tuple(map(float, self.b)),
            tuple(map(float, self.c)),
        )


@cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """Return all rooted trees with this many nodes (1, 1, 2, 4, 9, … of them)."""
    return tuple(dict.fromkeys(_forests(nodes - 1)))


def _forests(nodes: int) -> list[Tree]:
    if nodes == 0:
        return [()]
    smaller = [tree for size in range(1, nodes + 1) for tree in rooted_trees(size)]
    return [
        tuple(forest)
        for count in range(1, nodes + 1)
        for forest in combinations_with_replacement(smaller, count)
        if sum(map(_size, forest)) == nodes
    ]


def _size(tree: Tree) -> int:
    return 1 + sum(map(_size, tree))


def _density(tree: Tree) -> int:
    """Return γ(tree): its size times the densities of its subtrees (Hairer, Nørsett, Wanner II.2)."""
    return _size(tree) * math.prod(map(_density, tree))


def _row(text: str) -> tuple[Fraction, ...]:
    return tuple(Fraction(entry) for entry in text.split())


def _tableau(
    name: str, order: int, c: str, a: Sequence[str], b: str, source: str, embedded: str = "", embedded_order: int = 0
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
)

TABLEAUS = {tableau.name: tableau for tableau in (EULER, MIDPOINT, HEUN, BOSH3, RK4, DOPRI5, TSIT5)}
