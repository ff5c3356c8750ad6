"""What the iMAML paper prints in Figure 2, digitised by pixel (Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019).

Figure 2a within 0.01; in both, ``None`` where a point could not be read or lies off the axis.
"""

from __future__ import annotations

STEPS_2A = (20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80, 85, 90, 95, 99)

Curve = tuple[float | None, ...]

# Method → ‖ĝ − g‖/‖g‖; CG = 5 and CG = 10 are one curve on paper.
_FIVE: Curve = (1.27, 1.00, 0.79, 0.63, 0.49, 0.41, 0.34, 0.28, 0.23, 0.19, 0.16, 0.14, 0.12, 0.10, 0.087, 0.075, 0.068)
ERRORS_2A: dict[str, Curve] = {
    "MAML": (
        *(None, None, None, 1.65, 1.27, 1.00, 0.79, 0.64, 0.52),
        *(0.43, 0.35, 0.30, 0.25, 0.21, 0.18, 0.15, 0.13),
    ),
    "iMAML with 2 CG steps": (
        *(1.22, 0.95, 0.74, 0.59, 0.48, 0.39, 0.31, 0.26, 0.22),
        *(None, 0.18, 0.16, 0.155, 0.15, 0.15, 0.15, 0.15),
    ),
    "iMAML with 5 CG steps": _FIVE,
    "iMAML with 10 CG steps": _FIVE,
}

# 20-way 5-shot Omniglot: seconds an iteration, and memory in units of the axis. Hardware not stated.
STEPS_2B = (1, 2, 5, 8, 10, 12, 16)
SECONDS_2B: dict[str, Curve] = {
    "MAML": (0.12, 0.144, 0.22, None, 0.341, None, 0.503),
    "FOMAML": (0.117, 0.120, 0.133, None, 0.142, None, 0.161),
    "iMAML with 2 CG steps": (0.210, 0.214, 0.227, None, 0.251, None, 0.289),
    "iMAML with 5 CG steps": (0.244, 0.257, 0.276, None, 0.301, None, 0.345),
    "iMAML with 10 CG steps": (0.320, 0.332, 0.338, None, 0.370, None, 0.413),
}
MEMORY_2B: dict[str, Curve] = {
    "MAML": (0.11, 0.167, 0.289, 0.472, 0.593, 0.714, 0.963),
    "FOMAML": (0.080,) * 7,
    "iMAML with 2 CG steps": (0.110,) * 7,
    "iMAML with 5 CG steps": (0.110,) * 7,
    "iMAML with 10 CG steps": (0.110,) * 7,
}
