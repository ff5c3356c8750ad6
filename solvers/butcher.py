"""Butcher tableaus of explicit Runge-Kutta methods, which prove their order when they are built."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, cached_property
from itertools import combinations_with_replacement

from torch import Tensor

from .stability import real_stability_limit

# A rooted tree is the sorted tuple of its subtrees; () is the single node.
Tree = tuple["Tree", ...]

# Tsit5 is published as decimals of 16 digits, so its conditions hold to rounding; the others hold exactly.
_ROUNDING = Fraction(1, 10**13)
# The weights of its dense output reach 50 and multiply that rounding.
_DENSE_ROUNDING = Fraction(1, 10**12)


@dataclass(frozen=True)
class ButcherTableau:
    """Coefficients of an explicit Runge-Kutta method, checked at construction.

    One step of size h from y is

        k_i = f(t + c_i h, Y_i),   Y_i = y + h Σ_{j<i} a_ij k_j,   y⁺ = y + h Σ_i b_i k_i,

    and h Σ_i (b_i − b̂_i) k_i estimates its error when an embedded method b̂ is given. Where the last stage k_s is f at
    the end of the step, the solution inside the step is the cubic Hermite interpolant, or one with a quartic part,

        y(t + ϑh) ≈ y + h Σ_i b_i(ϑ) k_i,   b_i(ϑ) = ϑ²(3−2ϑ) b_i + ϑ(1−ϑ)² δ_i1 − ϑ²(1−ϑ) δ_is + ϑ²(1−ϑ)² d_i

    (Hairer, Nørsett, Wanner, Solving ODEs I, II.6). Whatever d is, it is continuously differentiable across steps.

    Args:
        name: how users call the method.
        order: order of convergence; the order conditions of every rooted tree up to it are verified.
        a: strictly lower triangular part, row i holding a_i1 … a_i,i−1 (the first row is empty).
        b: weights of the solution.
        embedded: weights b̂ of the embedded method, or ``None``.
        embedded_order: its order, verified too.
        quartic: weights d that lift the dense output to order 4, verified too, or ``None``.
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
    quartic: tuple[Fraction, ...] | None = None

    def __post_init__(self) -> None:
        stages = len(self.b)
        if [len(row) for row in self.a] != list(range(stages)) or len(self.c) != stages:
            raise ValueError(f"{self.name}: a must be strictly lower triangular with {stages} rows, c of {stages}")
        for i, (row, node) in enumerate(zip(self.a, self.c, strict=True)):
            if abs(sum(row) - node) > _ROUNDING:
                raise ValueError(f"{self.name}: row {i} of a sums to {sum(row)}, its node is {node}")
        self._check_order("b", self.b, self.order)
        if self.embedded is not None:
            if len(self.embedded) != stages:
                raise ValueError(f"{self.name}: the embedded weights must be {stages}, got {len(self.embedded)}")
            if self.embedded_order < 1:
                raise ValueError(f"{self.name}: embedded weights need their order, got {self.embedded_order}")
            self._check_order("embedded", self.embedded, self.embedded_order)
        if self.quartic is not None:
            if len(self.quartic) != stages:
                raise ValueError(f"{self.name}: the quartic weights must be {stages}, got {len(self.quartic)}")
            if not self.first_same_as_last:
                raise ValueError(f"{self.name}: dense output needs f at the end of the step as the last stage")
        self._check_dense_order()

    def _check_order(self, what: str, weights: Sequence[Fraction], order: int) -> None:
        for tree in _trees_up_to(order):
            value = _dot(weights, self._stage_products(tree))
            if abs(value - Fraction(1, _density(tree))) > _ROUNDING:
                raise ValueError(
                    f"{self.name}: the condition of order {_size(tree)} on {what} for the tree {tree} gives {value}, "
                    f"expected 1/{_density(tree)}"
                )

    def _check_dense_order(self) -> None:
        """Verify Σ_i b_i(ϑ) Φ_i(tree) = ϑ^|tree| / γ(tree), power by power (Hairer, Nørsett, Wanner II.6, Th. 6.1)."""
        for tree in _trees_up_to(self.dense_order):
            products = self._stage_products(tree)
            for power, weights in enumerate(zip(*self.dense_polynomials, strict=True), start=1):
                value = _dot(weights, products)
                expected = Fraction(int(power == _size(tree)), _density(tree))
                if abs(value - expected) > _DENSE_ROUNDING:
                    raise ValueError(
                        f"{self.name}: the dense condition of order {_size(tree)} for the tree {tree} gives {value} "
                        f"for the power {power}, expected {expected}"
                    )

    def _stage_products(self, tree: Tree) -> list[Fraction]:
        """Return Φ_i(tree) = Π over subtrees s of Σ_j a_ij Φ_j(s), for each stage i."""
        products = [Fraction(1)] * len(self.b)
        for subtree in tree:
            inner = self._stage_products(subtree)
            for i, row in enumerate(self.a):
                products[i] *= _dot(row, inner)
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

    def with_last_slope(self) -> ButcherTableau:
        """Return the same method with f at the end of the step as one more stage, or itself if it has that already.

        The solution and its error estimate stay as they are, and dense output becomes available.
        """
        if self.first_same_as_last:
            return self
        return replace(
            self,
            a=(*self.a, self.b),
            b=(*self.b, Fraction(0)),
            c=(*self.c, Fraction(1)),
            embedded=None if self.embedded is None else (*self.embedded, Fraction(0)),
        )

    @cached_property
    def floats(self) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...], tuple[float, ...]]:
        """The coefficients (a, b, c) rounded once to float64, for use in a step."""
        return (
            tuple(tuple(map(float, row)) for row in self.a),
            tuple(map(float, self.b)),
            tuple(map(float, self.c)),
        )

    @cached_property
    def error_weights(self) -> tuple[float, ...]:
        """The weights b − b̂ of the error estimate, rounded once to float64; empty without an embedded method."""
        return tuple(float(b - other) for b, other in zip(self.b, self.embedded or (), strict=False))

    @cached_property
    def _stability_fractions(self) -> tuple[Fraction, ...]:
        """The coefficients of R(z) = 1 + Σ_k z^k bᵀA^{k−1}𝟙, from the constant to the highest power that is there."""
        powers, coefficients = [Fraction(1)] * self.stages, [Fraction(1)]
        for _ in range(self.stages):
            coefficients.append(_dot(self.b, powers))
            powers = [_dot(row, powers) for row in self.a]
        while coefficients[-1] == 0:
            coefficients.pop()
        return tuple(coefficients)

    @property
    def stability_polynomial(self) -> tuple[float, ...]:
        """Coefficients 1, r_1, r_2, … of R(z), with y⁺ = R(hλ) y on dy/dt = λy (Hairer and Wanner IV.2)."""
        return tuple(map(float, self._stability_fractions))

    @cached_property
    def stability_limit(self) -> float:
        """Length of the real stability interval: the largest β with ``|R(−x)|`` ≤ 1 for all x in [0, β]."""
        return real_stability_limit(self._stability_fractions)

    @property
    def dense_order(self) -> int:
        """The q for which the dense output errs by O(h^(q+1)) inside a step; 0 where there is none."""
        if not self.first_same_as_last:
            return 0
        return min(self.order, 3) if self.quartic is None else 4

    @cached_property
    def dense_polynomials(self) -> tuple[tuple[Fraction, ...], ...]:
        """The coefficients of ϑ, ϑ², ϑ³, ϑ⁴ in b_i(ϑ), a row a stage; empty without dense output."""
        if not self.first_same_as_last:
            return ()
        rows = []
        for i, b in enumerate(self.b):
            first, last = int(i == 0), int(i == self.stages - 1)
            d = self.quartic[i] if self.quartic is not None else Fraction(0)
            rows.append((Fraction(first), 3 * b - 2 * first - last + d, -2 * b + first + last - 2 * d, d))
        return tuple(rows)

    @cached_property
    def _dense_floats(self) -> tuple[tuple[float, ...], ...]:
        return tuple(tuple(map(float, row)) for row in self.dense_polynomials)

    def dense_weights(self, theta: float | Tensor) -> list[float | Tensor]:
        """Return the weights b_i(ϑ) of the solution y(t + ϑh) ≈ y + h Σ_i b_i(ϑ) k_i inside a step.

        Args:
            theta: a number, or a tensor such as one a row of shape ``[rows, 1]``; its dtype and shape are the
                weights', except that those which vanish for every ϑ are the number 0.

        Raises:
            ValueError: if the last stage is not f at the end of the step.
        """
        if not self.first_same_as_last:
            raise ValueError(f"{self.name} has no dense output without f at the end of its step; use with_last_slope()")
        return [_evaluate(row, theta) for row in self._dense_floats]


def _evaluate(coefficients: Sequence[float], theta: float | Tensor) -> float | Tensor:
    """Return Σ_k p_k ϑ^k, k = 1, 2, …, by Horner's rule; the zero polynomial is the number 0 whatever ϑ is."""
    if not any(coefficients):
        return 0.0
    *lower, highest = coefficients
    value: float | Tensor = highest
    for coefficient in reversed(lower):
        value = value * theta + coefficient
    return value * theta


def _dot(weights: Sequence[Fraction], values: Sequence[Fraction]) -> Fraction:
    """Return Σ_i w_i x_i over as many values as there are weights."""
    return sum((w * x for w, x in zip(weights, values, strict=False)), Fraction(0))


def _trees_up_to(order: int) -> list[Tree]:
    return [tree for nodes in range(1, order + 1) for tree in rooted_trees(nodes)]


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
