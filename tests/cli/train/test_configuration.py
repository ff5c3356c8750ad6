"""Flags go before --set, --set before the file, and the method's options stay with their method."""

import pytest
import yaml

from adjoint_meta.experiments import run as runs

pytestmark = pytest.mark.usefixtures("float32")


@pytest.fixture
def resolved(call, monkeypatch):
    """What a command line resolves to, without a run: the configuration, or the line that refuses it."""
    seen = []

    def fit(config, directory, **options):
        seen.append(config)
        raise RuntimeError("seen")

    monkeypatch.setattr(runs, "fit", fit)

    def find(*arguments, settings=()):
        code, _, err = call(*arguments, settings=settings)
        return seen.pop() if code == 1 and "seen" in err else err

    return find


@pytest.fixture
def file(tmp_path):
    def write(**content):
        path = tmp_path / "c.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return write


def test_flags_go_before_set_and_set_before_the_file(resolved, file):
    path = file(experiment="alpine", seed=1, dtype="float64", meta_steps=11, tasks_per_step=9)
    found = resolved("--config", path)
    assert (found.experiment, found.seed, found.dtype, found.meta_steps) == ("alpine", 1, "float64", 11)
    found = resolved("--config", path, settings=("seed=2", "meta_steps=12", "dtype=float32"))
    assert (found.seed, found.meta_steps, found.dtype, found.tasks_per_step) == (2, 12, "float32", 9)
    found = resolved(
        "sine", "--config", path, "--seed", 3, "--dtype", "float64", "--device", "cpu", settings=("seed=2",)
    )
    assert (found.experiment, found.seed, found.dtype, found.device) == ("sine", 3, "float64", "cpu")
    assert resolved().experiment == "cosmixture"  # the default


def test_options_of_the_method_in_the_file_do_not_carry_over_to_another(resolved, file):
    path = file(experiment="sine", method={"name": "maml", "steps": 7, "inner_lr": 0.5, "adjoint": "checkpointed"})
    assert resolved("--config", path).method["steps"] == 7
    plain = resolved("sine", "--method", "fomaml").method
    assert resolved("--config", path, "--method", "fomaml").method == plain
    assert resolved("--config", path, settings=("method=fomaml",)).method == plain
    assert resolved("--config", path, settings=("method.name=fomaml",)).method == plain


@pytest.mark.parametrize("stored", ["maml", {"name": "maml", "inner_lr": 0.5}])
def test_an_option_set_belongs_to_the_method_in_the_file(resolved, file, stored):
    found = resolved("--config", file(experiment="sine", method=stored), settings=("method.steps=3",))
    assert found.method["name"] == "maml" and found.method["steps"] == 3
    assert found.method["inner_lr"] == (0.01 if stored == "maml" else 0.5)


def test_an_option_set_belongs_to_the_method_given_by_name(resolved, file):
    path = file(experiment="sine", method={"name": "adjoint", "horizon": 0.5})
    found = resolved("--config", path, "--method", "maml", settings=("method.steps=3",))
    assert found.method["name"] == "maml" and found.method["steps"] == 3
