"""The studies by name."""

from __future__ import annotations

from . import imaml_accuracy
from .study import Study

STUDIES: dict[str, Study] = {
    "imaml-accuracy": Study("iMAML's Fig. 2a: error of the meta-gradient on linear regression", imaml_accuracy.run),
}
