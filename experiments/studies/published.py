"""What the A-MAML paper prints: Tables 4 and 5, Figures 3 and 4 (Li, Wang, Narayan, Kirby, Zhe, AISTATS 2023)."""

from __future__ import annotations

# How the paper differentiates: DOPRI5 forward, modified Euler (Heun) for the costate over the states stored.
SCHEME = "dopri5, Heun costate"

STATES_4 = (10, 20, 50, 100, 200, 500, 1000)
STATES_5 = (10, 20, 50, 100, 200, 500)

# T → relative L2 error, one value a number of states; means over 20 initial states.
AUTODIFF_4: dict[float, tuple[float, ...]] = {
    0.1: (6.24e-7, 2.01e-7, 1.48e-7, 6.75e-7, 7.32e-7, 7.69e-7, 7.09e-7),
    0.5: (3.34e-4, 7.34e-5, 1.08e-5, 2.64e-6, 9.18e-7, 1.12e-6, 4.55e-6),
    1.0: (2.51e-3, 5.82e-4, 8.90e-5, 2.19e-5, 5.54e-6, 1.16e-6, 1.51e-6),
    2.0: (4.74e-1, 7.33e-2, 9.28e-3, 2.16e-3, 5.23e-4, 8.14e-5, 2.01e-5),
}
ADJOINT_4: dict[float, tuple[float, ...]] = {
    0.1: (1.02e-6, 6.34e-7, 6.88e-7, 5.87e-7, 4.49e-7, 3.01e-7, 1.45e-7),
    0.5: (2.67e-4, 6.17e-5, 9.35e-6, 2.17e-6, 6.73e-7, 7.36e-7, 6.94e-7),
    1.0: (2.48e-3, 5.04e-4, 7.17e-5, 1.73e-5, 4.34e-6, 9.91e-7, 9.96e-7),
    2.0: (2.92e-1, 4.77e-2, 6.10e-3, 1.42e-3, 3.44e-4, 5.39e-5, 1.32e-5),
}
# Means over 20 initialisations, against the same method with 1000 states.
ADJOINT_5: dict[float, tuple[float, ...]] = {
    0.1: (7.62e-4, 3.55e-4, 1.33e-4, 6.24e-5, 2.76e-5, 6.87e-6),
    0.3: (4.82e-3, 2.26e-3, 8.63e-4, 4.19e-4, 2.01e-4, 7.16e-5),
    0.5: (1.17e-2, 5.46e-3, 2.09e-3, 1.03e-3, 4.99e-4, 1.87e-4),
}

# Figures 3 and 4, read from the vector paths: CosMixture, 100 / 100 points, α = 0.01, on this card.
CARD, CARD_MIB = "RTX 3090", 24 * 1024
STEPS_3 = (1, 10, 20, 50, 100, 200, 300, 500)

# Method → seconds a meta-update, one value a number of steps; ``None`` where the paper has no point.
SECONDS_4: dict[str, tuple[float | None, ...]] = {
    "A-MAML": (0.019, 0.126, 0.230, 0.341, 0.579, 0.894, 1.346, 2.355),
    "FOMAML": (0.006, 0.038, 0.068, 0.153, 0.338, 0.626, 0.946, 1.521),
    "iMAML": (0.046, 0.079, 0.102, 0.185, 0.304, 0.657, 0.940, 1.678),
    "MAML": (0.061, 0.244, 1.132, 2.226, 3.370, 4.828, None, None),
    "Reptile": (0.004, 0.030, 0.067, 0.161, 0.326, 0.583, 0.858, 1.517),
}
# Method → memory as a share of the card's.
MEMORY_3: dict[str, tuple[float | None, ...]] = {
    "A-MAML": (0.108, 0.123, 0.150, 0.172, 0.185, 0.199, 0.224, 0.255),
    "MAML": (0.096, 0.108, 0.153, 0.314, 0.521, 0.980, None, None),
    "FOMAML": (0.102,) * 8,
    "iMAML": (0.118,) * 8,
    "Reptile": (0.109,) * 8,
}
