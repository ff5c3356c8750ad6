import json
import platform
from functools import partial

import pytest
import torch

import adjoint_meta
from adjoint_meta.experiments import diagnosis


@pytest.fixture
def call(invoke):
    return partial(invoke, "doctor")


def test_json_has_versions_devices_data_and_the_check(call, monkeypatch, tmp_path):
    monkeypatch.setenv("ADJOINT_META_DATA", str(tmp_path))
    code, out, err = call("--json")
    assert (code, err) == (0, "") and len(out.splitlines()) == 1
    found = json.loads(out)
    assert found["versions"]["python"] == platform.python_version()
    assert torch.__version__.startswith(found["versions"]["torch"])  # with or without the +cpu of the build
    assert {"torchvision", "torchdiffeq", "numpy", "scipy", "matplotlib"} <= set(found["versions"])
    assert found["devices"][0] == "cpu" and len(found["devices"]) == 1 + torch.cuda.device_count()
    assert found["threads"] == torch.get_num_threads()
    assert found["data"][0] == str(tmp_path)
    check = found["gradient_check"]
    assert check["passed"] is True and check["error"] < 1e-9
    assert check["seconds"] < 20  # "a 2-second check" on a machine of one's own


def test_its_own_version_is_known_in_a_checkout_too(call):
    _, out, _ = call("--json")
    assert json.loads(out)["versions"]["adjoint-meta"] == adjoint_meta.__version__


def test_people_see_the_same(call):
    code, out, err = call()
    assert (code, err) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert torch.__version__.startswith(lines["torch"]) and lines["python"] == platform.python_version()
    assert lines["devices"].startswith("cpu") and "threads" in lines["devices"]
    assert lines["gradients"].startswith("exact: relative error ")


def test_a_package_that_is_not_there_is_said_to_be_missing(call, monkeypatch):
    monkeypatch.setattr(diagnosis, "PACKAGES", (*diagnosis.PACKAGES, "no-such-package"))
    code, out, _ = call()
    assert code == 0 and "no-such-package" in out and "not installed" in out


def test_a_wrong_gradient_is_exit_code_1(call, monkeypatch):
    real = diagnosis.compare

    def wrong(learner, tasks):
        found = real(learner, tasks)
        return type(found)(**{**vars(found), "error": 1e-3})

    monkeypatch.setattr(diagnosis, "compare", wrong)
    code, out, err = call()
    assert code == 1 and "gradients     WRONG: relative error 1.0e-03" in out
    (line,) = err.splitlines()
    assert line.startswith("adjoint-meta: the gradient self-check failed")
    code, out, _ = call("--json")
    assert code == 1 and json.loads(out)["gradient_check"]["passed"] is False
