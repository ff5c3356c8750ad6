"""Configurations: defaults < file < --set < names given; what cannot be is refused in one line."""

import json

import pytest
import yaml

from adjoint_meta import FOMAML, MAML, AdjointMAML, ImplicitMAML, Reptile
from adjoint_meta.experiments.config import METHODS, merge, parse_assignments, read_yaml, validate
from adjoint_meta.experiments.registry import EXPERIMENTS, resolve


def assigned(*assignments, experiment="sine", method=None):
    return resolve(parse_assignments(assignments), experiment, method)


def refusal(call, *arguments, **options):
    """The one line that a refused configuration leaves."""
    with pytest.raises(ValueError) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# What is set


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("meta_steps=7", 7),
        ("optimizer.lr=1e-3", 1e-3),
        ("optimizer.lr=1E-3", 1e-3),
        ("optimizer.lr=.5", 0.5),
        ("clip_norm=2", 2.0),
        ("clip_norm=null", None),
        ("clip_norm=", None),
        ("adapt=[4.*, '0.bias']", ["4.*", "0.bias"]),
        ("scheduler.name=StepLR", "StepLR"),
        (" seed = 3 ", 3),
        ("optimizer.options={weight_decay: 0.5}", {"weight_decay": 0.5}),
        ("model.activation=relu", "relu"),
    ],
)
def test_set_reaches_any_key(text, value):
    config = assigned(text)
    found = config.model_dump()
    for part in text.partition("=")[0].strip().split("."):
        found = found[part]
    assert found == value and type(found) is type(value)


def test_small_numbers_are_numbers_wherever_they_stand():
    """YAML 1.1 reads 1e-3 as text; nobody who writes it means text."""
    config = assigned("optimizer.options={weight_decay: 1e-3, betas: [9e-1, 0.99]}")
    assert config.optimizer.options == {"weight_decay": 1e-3, "betas": [0.9, 0.99]}


def test_small_numbers_in_a_file_are_numbers(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("optimizer: {lr: 1e-4, options: {weight_decay: 1e-3}}\nmethod: {horizon: 5e-1}\n")
    config = resolve(read_yaml(path), "sine")
    assert config.optimizer.lr == 1e-4 and config.method["horizon"] == 0.5
    assert config.optimizer.options == {"weight_decay": 1e-3}


def test_several_assignments_nest():
    found = parse_assignments(["method.horizon=1.0", "method.steps=3", "seed=4", "seed=5"])
    assert found == {"method": {"horizon": 1.0, "steps": 3}, "seed": 5}


def test_merging_goes_key_by_key_and_changes_neither():
    base, over = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 9}, "e": 4}
    assert merge(base, over) == {"a": {"b": 9, "c": 2}, "d": 3, "e": 4}
    assert base == {"a": {"b": 1, "c": 2}, "d": 3} and over == {"a": {"b": 9}, "e": 4}
    assert merge({"a": {"b": 1}}, {"a": 2}) == {"a": 2} and merge({"a": 2}, {"a": {"b": 1}}) == {"a": {"b": 1}}


# Precedence


def test_a_file_goes_before_the_defaults_and_set_before_the_file(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("meta_steps: 11\nseed: 5\nmodel: {width: 7}\nmethod: {horizon: 0.7}\n")
    config = resolve(merge(read_yaml(path), parse_assignments(["seed=6", "method.steps=3"])), "sine")
    default = resolve({}, "sine")
    assert default.meta_steps != 11 and default.model["width"] != 7 and default.method["horizon"] != 0.7
    assert (config.meta_steps, config.seed) == (11, 6)
    assert (config.model["width"], config.model["depth"]) == (7, default.model["depth"])
    assert (config.method["horizon"], config.method["steps"]) == (0.7, 3)


def test_names_given_go_before_the_file():
    config = resolve({"experiment": "alpine", "method": {"name": "maml", "inner_lr": 0.5}}, "sine", "fomaml")
    assert config.experiment == "sine" and config.method["name"] == "fomaml"
    assert resolve({"experiment": "alpine", "method": "maml"}).experiment == "alpine"
    assert resolve({"experiment": "alpine", "method": "maml"}).method["name"] == "maml"
    assert resolve({}).experiment == "cosmixture" and resolve({}).method["name"] == "adjoint"


def test_options_of_another_method_do_not_carry_over():
    config = resolve({"method": {"name": "maml", "steps": 3, "inner_lr": 0.5}}, "sine", "fomaml")
    assert config.method == resolve({}, "sine", "fomaml").method


@pytest.mark.parametrize("order", [("method=maml", "method.steps=3"), ("method.steps=3", "method=maml")])
def test_a_method_and_its_option_set_together_are_both_heard(order):
    """One may be refused, but neither may be lost without a word."""
    try:
        config = assigned(*order)
    except ValueError as error:
        assert "method" in str(error)
        return
    assert config.method["name"] == "maml" and config.method["steps"] == 3


# Methods


@pytest.mark.parametrize(
    ("name", "kind"),
    [("adjoint", AdjointMAML), ("imaml", ImplicitMAML), ("maml", MAML), ("fomaml", FOMAML), ("reptile", Reptile)],
)
def test_a_method_is_built_from_its_options(name, kind):
    config = assigned("method.steps=3", method=name)
    method = config.build_method()
    assert type(method) is kind is METHODS[name] and method.steps == 3
    assert {"name": name, **vars(method)} == {k: tuple(v) if k == "learn" else v for k, v in config.method.items()}


def test_learned_hyperparameters_are_a_list_in_yaml():
    config = assigned("method.learn=[horizon, rates]")
    assert config.build_method().learn == ("horizon", "rates")


# Round trip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
@pytest.mark.parametrize("method", METHODS)
def test_the_dump_is_yaml_that_resolves_to_the_same_configuration(tmp_path, experiment, method):
    config = resolve(parse_assignments(["optimizer.lr=3e-4", "adapt=['4.*']"]), experiment, method)
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(), encoding="utf-8")
    assert resolve(read_yaml(path)) == config
    assert json.loads(json.dumps(config.model_dump(mode="json"))) == yaml.safe_load(config.dump())
    # nothing is left to defaults that another version might change
    assert set(yaml.safe_load(config.dump())) == set(type(config).model_fields)


def test_an_infinite_horizon_survives_the_round_trip(tmp_path):
    keys = ["method.horizon=inf", "method.solver=dopri5", "method.proximal=1.0"]
    config = resolve(parse_assignments(keys))
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(), encoding="utf-8")
    assert resolve(read_yaml(path)) == config and config.method["horizon"] == float("inf")


# Refusals


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("metasteps=3", r"unknown key 'metasteps'; did you mean 'meta_steps'"),
        ("model.widht=3", r"unknown key 'model\.widht'; did you mean '(model\.)?width'"),
        ("method.horizn=3", r"unknown key 'method\.horizn'; did you mean '(method\.)?horizon'"),
        ("task.shot=3", r"unknown key 'task\.shot'; did you mean '(task\.)?shots'"),
        ("validation.patients=3", r"unknown key 'validation\.patients'; did you mean '(validation\.)?patience'"),
        ("zzz=3", r"unknown key 'zzz'; expected one of adapt, "),
        ("method=mamml", r"unknown method 'mamml'; did you mean 'maml'"),
        ("method.solver=rk5", r"unknown solver 'rk5'; did you mean 'rkc' or 'rk4'"),
        ("method.adjoint=discreet", r"unknown adjoint 'discreet'; did you mean 'discrete'"),
        ("method.learn=[horizn]", r"unknown learnable hyperparameter 'horizn'; did you mean 'horizon'"),
        ("meta_steps=0", r"meta_steps should be greater than or equal to 1, got 0"),
        ("meta_steps=-4", r"meta_steps should be greater than or equal to 1, got -4"),
        ("meta_steps=1.5", r"meta_steps should be a valid integer.*got 1\.5"),
        ("meta_steps=many", r"meta_steps should be a valid integer.*got 'many'"),
        ("meta_steps=", r"meta_steps should be a valid integer, got None"),
        ("meta_steps.more=1", r"meta_steps should be a valid integer, got \{'more': 1\}"),
        ("meta_steps=true", r"meta_steps .*integer.*True"),
        ("seed=true", r"seed .*integer.*True"),
        ("tasks_per_step=0", r"tasks_per_step should be greater than or equal to 1, got 0"),
        ("checkpoint_every=0", r"checkpoint_every should be greater than or equal to 1, got 0"),
        ("max_skipped=0", r"max_skipped should be greater"),
        ("chunk_size=0", r"chunk_size should be greater"),
        ("point_chunk=0", r"point_chunk should be greater than or equal to 1, got 0"),
        ("point_chunk=true", r"point_chunk .*integer.*True"),
        ("autocast=bf16", r"autocast should be 'bfloat16' or 'float16', got 'bf16'"),
        ("seed=-1", r"seed should be greater than or equal to 0, got -1"),
        ("seed=4294967296", r"seed should be less than 4294967296"),
        ("seed=2024-13-45", r"seed.*2024-13-45"),
        ("optimizer.lr=0", r"optimizer\.lr should be greater than 0, got 0"),
        ("optimizer.lr=-1e-3", r"optimizer\.lr should be greater than 0, got -0\.001"),
        ("optimizer.lr=.inf", r"optimizer\.lr should be .*finite"),
        ("optimizer.lr=.nan", r"optimizer\.lr should be "),
        ("clip_norm=0", r"clip_norm should be greater than 0"),
        ("method.horizon=0", r"horizon must be positive and finite, got 0"),
        ("method.horizon=-1", r"horizon must be positive and finite, got -1"),
        ("method.horizon=.nan", r"horizon must be positive and finite, got nan"),
        ("method.horizon=long", r"method\.horizon should be a valid number.*got 'long'"),
        ("method.horizon=true", r"horizon .*number.*True"),
        ("method.steps=0", r"steps must be at least 1, got 0"),
        ("method.steps=-3", r"steps must be at least 1, got -3"),
        ("method.steps=2.5", r"method\.steps should be a valid integer.*2\.5"),
        ("method.proximal=-1", r"proximal must be finite and at least 0"),
        ("method.snapshots=3", r"snapshots=3 has no use with adjoint='discrete'"),
        ("method=3", r"method should be a name or a mapping"),
        ("task=3", r"task should be a valid dictionary, got 3"),
        ("task.shots=ten", r"task\.shots should be a valid integer.*'ten'"),
        ("device=gpu", r"device should be 'auto', 'cpu' or 'cuda', got 'gpu'"),
        ("dtype=float16", r"dtype should be 'float32' or 'float64', got 'float16'"),
        ("adapt=4", r"adapt should be a valid list, got 4"),
        ("model.depth=-1", "model: depth must be at least 0, got -1"),
        ("model.width=0", "model: width must be at least 1, got 0"),
        ("test.adam_epochs=-1", r"test\.adam_epochs should be greater"),
        ("validation.patience=0", r"validation\.patience should be greater"),
    ],
)
def test_a_wrong_value_is_refused(assignment, message):
    with pytest.raises(ValueError, match=message) as caught:
        assigned(assignment)
    assert "\n" not in str(caught.value)


def test_unknown_names_show_their_neighbours():
    near = refusal(resolve, {}, "movielens")
    assert "did you mean" in near and "'movielens-100k'" in near and "'movielens-1m'" in near
    assert "expected one of alpine, cifar-fs, cosmixture" in refusal(resolve, {}, "bogus")
    assert "unknown experiment 'alpin'; did you mean 'alpine'" in refusal(resolve, {"experiment": "alpin"})
    assert "unknown method 'mamm'; did you mean 'maml'" in refusal(resolve, {}, "sine", "mamm")


@pytest.mark.parametrize("text", ["seed", "=3", "", "  =3", "a=[1", "a={b", "a='x"])
def test_an_assignment_that_is_none_is_refused(text):
    message = refusal(parse_assignments, [text])
    assert "--set" in message


def test_nothing_can_be_set_inside_a_value():
    message = refusal(parse_assignments, ["model.width=3", "model.width.more=4"])
    assert "--set model.width.more" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("meta_steps: 3\nseed: [1,\nmodel: 2\n", r"c\.yaml, line \d is not valid YAML"),
        ("meta_steps: 3\n\tseed: 1\n", r"c\.yaml, line 2 is not valid YAML"),
        ("model: {width: 3\n", r"c\.yaml, line 2 is not valid YAML"),
        ("x: !!python/object/apply:os.getpid []\n", r"c\.yaml, line 1 is not valid YAML"),
        ("- 1\n- 2\n", r"c\.yaml must hold a mapping such as 'meta_steps: 200', got list"),
        ("just text\n", r"c\.yaml must hold a mapping .* got str"),
        ("", r"c\.yaml must hold a mapping"),
        ("a: \x00", r"c\.yaml is not valid YAML"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "c.yaml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_yaml(path)


@pytest.mark.parametrize("text", ["2024-13-45", "2024-01-01"])
def test_what_looks_like_a_date_is_refused_by_its_key(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: {text}\n")
    with pytest.raises(ValueError, match=r"c\.yaml|seed"):
        resolve(read_yaml(path), "sine")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    assert "none.yaml" in refusal(read_yaml, tmp_path / "none.yaml")
    assert "cannot read" in refusal(read_yaml, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\xff\n")
    assert "latin.yaml" in refusal(read_yaml, tmp_path / "latin.yaml")


@pytest.mark.parametrize("raw", [{1: 2}, {"task": {1: 2}}, {"method": {1: 2}}, {"model": {1: 2}}])
def test_keys_that_are_not_text_are_refused(raw):
    assert "1" in refusal(resolve, raw, "sine")


def test_the_configuration_is_frozen():
    config = validate({"experiment": "sine", "method": {"name": "maml"}})
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 3


def test_a_model_is_named_as_a_method_is(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("model: conv4\n")
    assert resolve(read_yaml(path), "sine").model == {"name": "conv4", "filters": 64, "downsample": "stride"}
    short = resolve(parse_assignments(["model=conv4", "model.filters=8"]), "sine").model
    assert short == {"name": "conv4", "filters": 8, "downsample": "stride"}
    assert resolve({}, "sine").model == {"name": "mlp", "width": 40, "depth": 2, "activation": "tanh"}
    own = resolve(parse_assignments(["model.name=torch.nn:Linear", "model.options.bias=false"]), "sine").model
    assert own == {"name": "torch.nn:Linear", "options": {"bias": False}}
    message = refusal(lambda: resolve({"model": {"name": "conv5"}}, "sine"))
    assert "unknown model 'conv5'; did you mean 'conv4'" in message and "package.module:function" in message
