"""What the papers print of few-shot classification: accuracies in per cent with ±, ``None`` where none is known.

Omniglot and mini-ImageNet: Tables 2 and 3 of iMAML (Rajeswaran, Finn, Kakade, Levine, NeurIPS 2019), and Table 3 of
A-MAML (Li, Wang, Narayan, Kirby, Zhe, AISTATS 2023), which takes over iMAML's rows; ANIL (Raghu, Raghu, Bengio and
Vinyals, ICLR 2020); COMLN (arXiv 2203.01443, ICLR 2022) on four convolutions.
"""

from __future__ import annotations

Accuracy = tuple[float, float | None]

# (ways, shots) → method → accuracy.
OMNIGLOT: dict[tuple[int, int], dict[str, Accuracy]] = {
    (5, 1): {
        "MAML": (98.7, 0.4),
        "FOMAML": (98.3, 0.5),
        "Reptile": (97.68, 0.04),
        "iMAML-GD": (99.16, 0.35),
        "iMAML-HF": (99.50, 0.26),
    },
    (5, 5): {
        "MAML": (99.9, 0.1),
        "FOMAML": (99.2, 0.2),
        "Reptile": (99.48, 0.06),
        "iMAML-GD": (99.67, 0.12),
        "iMAML-HF": (99.74, 0.11),
    },
    (20, 1): {
        "MAML": (95.8, 0.3),
        "FOMAML": (89.4, 0.5),
        "Reptile": (89.43, 0.14),
        "iMAML-GD": (94.46, 0.42),
        "iMAML-HF": (96.18, 0.36),
        "A-MAML (T = 0.5)": (96.36, 0.39),
        "A-MAML (T = 1)": (96.79, 0.34),
        "ANIL": (96.2, 0.5),
    },
    (20, 5): {
        "MAML": (98.9, 0.2),
        "FOMAML": (97.9, 0.1),
        "Reptile": (97.12, 0.32),
        "iMAML-GD": (98.69, 0.1),
        "iMAML-HF": (99.14, 0.1),
        "ANIL": (98.0, 0.3),
    },
}

MINI_IMAGENET: dict[tuple[int, int], dict[str, Accuracy]] = {
    (5, 1): {
        "MAML": (48.70, 1.84),
        "FOMAML": (48.07, 1.75),
        "Reptile": (49.97, 0.32),
        "iMAML-GD": (48.96, 1.84),
        "iMAML-HF": (49.30, 1.88),
        "A-MAML (T = 0.5)": (49.43, 1.64),
        "A-MAML (T = 1)": (49.47, 1.77),
        "ANIL": (46.7, 0.4),
        # COMLN's, of a learned T.
        "A-MAML (head)": (53.01, 0.62),
    },
}

# Yang, Ma, Yu, AAAI 2025, second-hand from an author's notes; the tables as printed were not seen. 5 ways, 5 shots,
# 4000 meta-steps. Data set → method → accuracy.
MEMORY_REDUCED: dict[str, dict[str, Accuracy]] = {
    "cifar-fs": {
        "MAML": (68.12, None),
        "ANIL": (67.87, None),
        "ITD-BiO": (67.99, None),
        "memory-reduced": (69.12, None),
    },
    "fc100": {
        "MAML": (48.20, None),
        "ANIL": (48.35, None),
        "ITD-BiO": (48.31, None),
        "memory-reduced": (49.14, None),
    },
    "mini-imagenet": {
        "MAML": (62.11, None),
        "ANIL": (63.62, None),
        "ITD-BiO": (61.07, None),
        "memory-reduced": (65.87, None),
    },
    "tiered-imagenet": {
        "MAML": (64.74, None),
        "ANIL": (65.49, None),
        "ITD-BiO": (63.37, None),
        "memory-reduced": (67.99, None),
    },
}
