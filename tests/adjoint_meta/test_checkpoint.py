"""Checkpoints: what is written is read back, a write that fails leaves the old file, and nothing foreign gets in."""

import io
import math
import os
import pickle
import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from adjoint_meta import checkpoint


def state(value=1.0):
    return {
        "model": {"weight": torch.full((30, 30), value), "steps": torch.tensor(3)},
        "progress": {"step": 7, "best": None, "loss": math.pi, "name": "run"},
        "list": [1, 2.5, True],
    }


@pytest.fixture
def path(tmp_path):
    checkpoint.save(tmp_path / "checkpoint.pt", state())
    return tmp_path / "checkpoint.pt"


def value_in(path):
    return float(checkpoint.load(path)["model"]["weight"][0, 0])


def test_what_is_saved_is_loaded(path):
    found = checkpoint.load(path)
    assert found.pop("format") == checkpoint.FORMAT
    assert torch.equal(found["model"].pop("weight"), torch.full((30, 30), 1.0))
    assert torch.equal(found["model"].pop("steps"), torch.tensor(3)) and found["model"] == {}
    assert found["progress"] == state()["progress"] and found["list"] == [1, 2.5, True]
    assert os.listdir(path.parent) == ["checkpoint.pt"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.uint8, torch.bool])
def test_dtypes_survive(tmp_path, dtype):
    value = torch.arange(4).to(dtype)
    checkpoint.save(tmp_path / "c.pt", {"value": value})
    found = checkpoint.load(tmp_path / "c.pt")["value"]
    assert found.dtype == dtype and torch.equal(found, value)


# Atomic writes


def test_a_write_that_breaks_off_leaves_the_old_file(path, monkeypatch):
    real = torch.save

    def half(what, file):
        whole = io.BytesIO()
        real(what, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, state(2.0))
    assert value_in(path) == 1.0
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path.with_name("other.pt"), state(2.0))
    assert not path.with_name("other.pt").exists()
    monkeypatch.undo()
    checkpoint.save(path, state(3.0))  # what the broken write left is not in the way
    assert value_in(path) == 3.0


def test_the_new_file_takes_the_name_only_when_it_is_on_disk(path, monkeypatch):
    """At the moment of the fsync the old file is still there, and the synced one is complete afterwards."""
    seen = []

    def fsync(descriptor):
        seen.append(value_in(path))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(path, state(2.0))
    assert seen[0] == 1.0 and value_in(path) == 2.0


def test_a_folder_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        checkpoint.save(tmp_path / "nowhere" / "c.pt", state())


# Files that are not ours


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("write", ["torch", "pickle", "inside"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, write):
    marker, path = tmp_path / "executed", tmp_path / "checkpoint.pt"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif write == "torch":
        torch.save(Bomb(marker), path)
    else:
        checkpoint.save(path, {**state(), "extra": Bomb(marker)})
    torch.load(path, weights_only=False) if write != "pickle" else pickle.loads(path.read_bytes())
    assert marker.exists()  # it would go off
    marker.unlink()
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        checkpoint.load(path)
    assert not marker.exists()


def refused(path):
    with pytest.raises(ValueError, match=r"checkpoint\.pt is not a") as caught:
        checkpoint.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path)


def test_a_file_with_a_flipped_bit_in_a_tensor_is_refused(path):
    content = bytearray(path.read_bytes())
    place = content.index(torch.full((4,), 1.0).numpy().tobytes()) + 100
    content[place] ^= 1
    path.write_bytes(content)
    refused(path)


def zip_archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.txt", "hello")
    return file.getvalue()


FOREIGN = {
    "text": b"meta_steps: 200\n" * 20,
    "zip": zip_archive(),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "short pickle": b"\x80\x02.",
    "cut pickle": pickle.dumps({"format": 1, "x": [1.5, 2]}, 2)[:20],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_is_refused(path, kind):
    path.write_bytes(FOREIGN[kind])
    refused(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_bytes_are_refused_whatever_they_are(path):
    draw = random.Random(0)
    for _ in range(300):
        path.write_bytes(draw.choice([b"", b"\x80\x02"]) + draw.randbytes(draw.randrange(1, 200)))
        refused(path)


@pytest.mark.parametrize("content", [{"format": 2}, {}, [1, 2], torch.zeros(3), {"format": "1"}])
def test_another_format_is_refused(path, content):
    torch.save(content, path)
    with pytest.raises(ValueError, match="not a checkpoint of format 1"):
        checkpoint.load(path)


def test_a_missing_file_is_said_to_be_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        checkpoint.load(tmp_path / "none.pt")


# Modules


def test_a_module_takes_its_own_state():
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    checkpoint.load_module(one, other.state_dict(), "file")
    assert torch.equal(one.weight, other.weight) and torch.equal(one.bias, other.bias)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (nn.Linear(3, 2, bias=False), "file has no parameter 'bias'"),
        (nn.Sequential(nn.Linear(3, 2)), "file has no parameter 'bias'"),
        (nn.Bilinear(3, 3, 2), r"file holds 'weight' of shape \[2, 3, 3\], the model has \[2, 3\]"),
        (nn.Linear(4, 2), r"file holds 'weight' of shape \[2, 4\], the model has \[2, 3\]"),
    ],
)
def test_a_state_of_another_module_is_refused_and_changes_nothing(other, message):
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        checkpoint.load_module(module, other.state_dict(), "file")
    assert "another model" in str(caught.value) and "\n" not in str(caught.value)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_a_state_with_more_than_the_module_is_refused():
    module = nn.Linear(3, 2, bias=False)
    with pytest.raises(ValueError, match="file has an unexpected parameter 'bias'"):
        checkpoint.load_module(module, nn.Linear(3, 2).state_dict(), "file")
