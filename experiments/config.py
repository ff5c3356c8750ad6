"""A run is one configuration: defaults of the experiment, a YAML file, `--set`, flags, in this order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from adjoint_meta.meta_gradients import ANIL, FOMAML, MAML, AdjointMAML, ImplicitMAML, MemoryReduced, Method, Reptile
from adjoint_meta.solvers import checks

from .conv_nets import Conv4, ResNet12
from .models import MLP, Imported, Network

METHODS: dict[str, type[Method]] = {
    "adjoint": AdjointMAML,
    "imaml": ImplicitMAML,
    "maml": MAML,
    "fomaml": FOMAML,
    "reptile": Reptile,
    "anil": ANIL,
    "memory-reduced": MemoryReduced,
}

NETWORKS: dict[str, type[Network]] = {"mlp": MLP, "conv4": Conv4, "resnet12": ResNet12}

T = TypeVar("T")

_FLOAT = "tag:yaml.org,2002:float"


def _no_bool(value: Any) -> Any:
    """Refuse true and false where a number is meant, which Python would take for 1 and 0."""
    if isinstance(value, bool):
        raise ValueError(f"should be a number (a whole one is an integer), got {value}")
    return value


Number = Annotated[float, BeforeValidator(_no_bool)]
Whole = Annotated[int, BeforeValidator(_no_bool)]


class Section(BaseModel):
    """A part of the configuration: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerConfig(Section):
    """The outer optimiser: any class of ``torch.optim``, its learning rate and further arguments."""

    name: str = "Adam"
    lr: Number = Field(default=1e-3, gt=0, allow_inf_nan=False)
    options: dict[str, Any] = {}


class SchedulerConfig(Section):
    """The learning-rate schedule: any class of ``torch.optim.lr_scheduler``, or none."""

    name: str | None = None
    options: dict[str, Any] = {}


class ValidationConfig(Section):
    """Meta-validation every so many meta-steps, and the validations without improvement that end the run."""

    every: Whole = Field(default=0, ge=0)
    patience: Whole | None = Field(default=None, ge=1)


class TestConfig(Section):
    """Meta-testing: besides the method's own inner solve, this many epochs of Adam (0: none)."""

    __test__ = False  # pytest would collect the class by its name

    adam_epochs: Whole = Field(default=0, ge=0)


class RunConfig(Section):
    """Everything that decides a run, written to ``config.yaml``."""

    experiment: str
    method: dict[str, Any]
    task: dict[str, Any] = {}
    model: dict[str, Any] = {}
    adapt: list[str] | None = None
    mode: str = "reverse_over_reverse"
    chunk_size: Whole | None = Field(default=None, ge=1)
    point_chunk: Whole | None = Field(default=None, ge=1)
    autocast: Literal["bfloat16", "float16"] | None = None
    backend: str = "auto"
    remat: list[str] = []
    meta_steps: Whole = Field(default=1000, ge=1)
    tasks_per_step: Whole = Field(default=5, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    clip_norm: Number | None = Field(default=None, gt=0, allow_inf_nan=False)
    max_skipped: Whole = Field(default=10, ge=1)
    validation: ValidationConfig = ValidationConfig()
    test: TestConfig = TestConfig()
    checkpoint_every: Whole = Field(default=100, ge=1)
    seed: Whole = Field(default=0, ge=0, lt=2**32)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "float64"] = "float32"

    def build_method(self) -> Method:
        """Return the method object.

        Raises:
            ValueError: if a method option is unknown or out of range.
        """
        name = checks.one_of("method", str(self.method.get("name")), METHODS)
        options = {key: value for key, value in self.method.items() if key != "name"}
        return build_dataclass(METHODS[name], options, "method")

    def build_network(self) -> Network:
        """Return the description of the network, which `Network.build` makes into a module.

        Raises:
            ValueError: if the name or an option is unknown or out of range.
        """
        name = str(self.model.get("name", "mlp"))
        options = {key: value for key, value in self.model.items() if key != "name"}
        if ":" in name:
            return build_dataclass(Imported, self.model, "model")
        if name not in NETWORKS:
            raise ValueError(
                f"unknown model {name!r}; {checks.nearest(name, NETWORKS)}; one's own is package.module:function"
            )
        return build_dataclass(NETWORKS[name], options, "model")

    def dump(self) -> str:
        """Return the configuration as YAML that trains the same run again."""
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def build_dataclass(kind: type[T], options: Mapping[str, Any], section: str) -> T:
    """Return ``kind(**options)`` with values converted to the fields' types.

    Raises:
        ValueError: for an unknown key, with its neighbours, or a value that does not fit.
    """
    known = {field.name: field.default for field in fields(kind)}  # type: ignore[arg-type]
    for key, value in options.items():
        if key not in known:
            raise ValueError(f"unknown key '{section}.{key}'; {checks.nearest(str(key), known)}")
        if isinstance(value, bool) and not isinstance(known[key], bool):
            raise ValueError(f"{section}.{key} should be a number or a name, got {value}")
    try:
        return TypeAdapter(kind).validate_python(dict(options))
    except ValidationError as error:
        raise ValueError(_one_line(error, section)) from error


class _Loader(yaml.SafeLoader):
    """YAML as people write configurations: 1e-3 is a number, and 2024-01-01 is text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in ("tag:yaml.org,2002:timestamp", _FLOAT)]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.2, section 10.3.2; PyYAML follows 1.1, which wants a point in the mantissa and a sign in the exponent.
_Loader.add_implicit_resolver(
    _FLOAT,
    re.compile(r"[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.inf|\.nan)$"),
    list("-+0123456789."),
)


def as_options(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields as plain data for YAML."""
    return {key: list(item) if isinstance(item, tuple) else item for key, item in asdict(value).items()}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a configuration file.

    Raises:
        ValueError: if it is missing, not YAML, or not a mapping; with the line where the YAML breaks.
    """
    try:
        loaded = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read the configuration {path}: {reason}; name an existing YAML file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} must hold a mapping such as 'meta_steps: 200', got {type(loaded).__name__}")
    return long_form(loaded)


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """Turn ``["method.horizon=1.0", …]`` into a nested mapping; values are read as YAML.

    Raises:
        ValueError: for text without ``=``, or a value that is not YAML.
    """
    nested: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ValueError(f"--set expects key=value such as method.horizon=1.0, got {text!r}")
        try:
            parsed = yaml.load(value, _Loader)
        except yaml.YAMLError as error:
            raise ValueError(f"--set {key}: the value {value!r} is not valid YAML") from error
        *path, last = key.strip().split(".")
        if [*path, last] in (["method"], ["model"]) and isinstance(parsed, str):
            path, last = [last], "name"
        place = nested
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ValueError(f"--set {key}: {part!r} was set to a value before, so nothing can be set inside it")
        place[last] = parsed
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``base`` with the values of ``over``, mappings merged key by key.

    Options of a method or a model do not carry over to another: one of another name replaces the whole section.
    """
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if (
            isinstance(below, Mapping)
            and isinstance(value, Mapping)
            and not (key in ("method", "model") and _differ(below, value))
        ):
            value = merge(below, value)
        merged[key] = value
    return merged


def _differ(below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    return "name" in below and "name" in above and below["name"] != above["name"]


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """Return the configuration, or say in one line what is wrong with it.

    Raises:
        ValueError: naming the key, what was got and what was expected.
    """
    try:
        return RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise ValueError(_one_line(error)) from error


def _one_line(error: ValidationError, section: str | None = None) -> str:
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    name = ".".join([section, *place] if section else place)
    message = first["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if first["type"] == "extra_forbidden":
        return f"unknown key {name!r}; {checks.nearest(place[-1], _keys_at(place[:-1]))}"
    if first["type"] == "value_error":
        # a dataclass's own check names the argument, but not the section
        return f"{name} {message}" if place else f"{section}: {message}" if section else message
    return f"{name} should be {message}, got {first['input']!r}"


def _keys_at(path: list[str]) -> list[str]:
    section: Any = RunConfig
    for part in path:
        section = section.model_fields[part].annotation
    return list(section.model_fields)


def long_form(raw: dict[str, Any]) -> dict[str, Any]:
    """Return ``method: maml`` as ``method: {name: maml}``, to which options can be added; likewise the model."""
    short = {key: {"name": raw[key]} for key in ("method", "model") if isinstance(raw.get(key), str)}
    return {**raw, **short}
