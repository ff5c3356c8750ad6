"""The experiments by name, and their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adjoint_meta.solvers import checks

from .config import METHODS, RunConfig, as_options, build_dataclass, merge, validate
from .experiment import Entry, Experiment
from .image_experiments import IMAGE_EXPERIMENTS
from .paper_experiments import PAPER_EXPERIMENTS

EXPERIMENTS: dict[str, Entry] = {**PAPER_EXPERIMENTS, **IMAGE_EXPERIMENTS}


def resolve(overrides: Mapping[str, Any], experiment: str | None = None, method: str | None = None) -> RunConfig:
    """Return the full configuration: the experiment's defaults, then ``overrides``, then the two names if given.

    Raises:
        ValueError: for an unknown name or key, with its neighbours, or a value that does not fit.
    """
    name = checks.one_of("experiment", str(experiment or overrides.get("experiment") or "cosmixture"), EXPERIMENTS)
    entry = EXPERIMENTS[name]
    wanted = overrides.get("method", {})
    if isinstance(wanted, str):  # `method: maml` is short for `method: {name: maml}`
        wanted = {"name": wanted}
    if not isinstance(wanted, Mapping):
        raise ValueError(f"method should be a name or a mapping such as {{name: maml, steps: 20}}, got {wanted!r}")
    chosen = checks.one_of("method", str(method or wanted.get("name") or "adjoint"), METHODS)
    if wanted.get("name", chosen) != chosen:  # options of another method do not carry over
        wanted = {}
    raw = merge(merge(entry.defaults, overrides), {"experiment": name})
    kept = dict(entry.methods[chosen])
    # Steps are counted for the default solver: another solver has its own default, and a tolerance replaces them.
    if wanted.get("solver", kept.get("solver")) != kept.get("solver") or wanted.get("rtol") is not None:
        kept.pop("steps", None)
    raw["method"] = {**kept, **wanted, "name": chosen}
    config = validate(raw)
    options = build_dataclass(entry.options, config.task, "task")
    full = {"name": chosen, **as_options(config.build_method())}
    network = {**config.model, **as_options(config.build_network())}
    return config.model_copy(update={"method": full, "model": network, "task": as_options(options)})


def build(config: RunConfig, data_dir: Path | None = None) -> Experiment:
    """Return the experiment of a configuration.

    Raises:
        MissingDataError: if its data set is not here; the message says how to get it.
        ValueError: if the data or the configuration are bad.
    """
    entry = EXPERIMENTS[config.experiment]
    return entry.build(config, build_dataclass(entry.options, config.task, "task"), data_dir)
