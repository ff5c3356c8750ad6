"""CIFAR-100 through torchvision: a small set whose digests torchvision is told to be the official ones."""

import errno
import hashlib
import pickle

import numpy as np
import pytest
import torch
from image_builders import snapshot, write

from adjoint_meta.experiments.data import cifar
from adjoint_meta.experiments.data.class_splits import official_classes
from adjoint_meta.experiments.data.errors import DataError, MissingDataError
from adjoint_meta.experiments.data.image_loading import load_images

NAMES = sorted(official_classes("fc100"))
PIXELS = np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32)).astype(np.uint8)
LABELS = [place % 100 for place in range(300)]


def contents():
    """Two images a class for training and one for testing."""
    parts = {"train": slice(0, 200), "test": slice(200, 300)}
    files = {
        name: {"data": PIXELS[part].reshape(-1, 3072), "fine_labels": LABELS[part]} for name, part in parts.items()
    }
    files["meta"] = {"fine_label_names": NAMES}
    return {f"cifar-100-python/{name}": pickle.dumps(content) for name, content in files.items()}


@pytest.fixture
def small(monkeypatch):
    from torchvision.datasets import CIFAR100

    digests = {name.split("/")[1]: hashlib.md5(data).hexdigest() for name, data in contents().items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", digests["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", digests["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": digests["meta"]})


@pytest.fixture(params=["archive", "folder"])
def mine(request, small, tmp_path):
    archive = request.param == "archive"
    write(tmp_path / "mine" / ("cifar-100-python.tar.gz" if archive else ""), contents())
    return tmp_path / "mine"


@pytest.mark.parametrize(("name", "counts"), [("cifar-fs", (64, 16, 20)), ("fc100", (60, 20, 20))])
def test_classes_go_where_the_list_says_with_their_images(name, counts, mine, cache):
    before = snapshot(mine)
    with pytest.warns(UserWarning, match=f"not the published {name}: it holds 3 images of class .*, expected 600"):
        splits = load_images(name, mine)
    assert tuple(len(classes) for classes in splits.values()) == counts
    for split, classes in splits.items():
        assert classes.shape == (3, 32, 32)
        for place, each in enumerate(classes.names):
            assert official_classes(name)[each] == split
            expected = PIXELS[NAMES.index(each) :: 100]
            assert torch.equal(classes.pixels[3 * place : 3 * place + 3], torch.from_numpy(expected))
    assert snapshot(mine) == before
    assert [path.name for path in cache.iterdir()] == ["images"]  # what was unpacked is gone


def test_another_size(mine):
    with pytest.warns(UserWarning, match="not the published"):
        assert load_images("fc100", mine, size=84)["test"].shape == (3, 84, 84)


def test_other_files_than_the_official_ones_are_not_even_unpickled(small, tmp_path):
    write(tmp_path / "cifar-100-python.tar.gz", contents() | {"cifar-100-python/train": b"\x80\x04rubbish"})
    with pytest.raises(DataError, match=r"cifar-100-python.tar.gz is not the official CIFAR-100, or is incomplete"):
        load_images("cifar-fs", tmp_path)


def test_a_broken_archive_and_a_missing_member_are_named(small, tmp_path):
    path = write(tmp_path / "cifar-100-python.tar.gz", contents())
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(DataError, match=r"cifar-100-python.tar.gz cannot be unpacked"):
        load_images("cifar-fs", tmp_path)
    write(path, {"cifar-100-python/train": b""})
    with pytest.raises(DataError, match=r"holds no cifar-100-python/meta; download it again"):
        load_images("cifar-fs", tmp_path)


def test_a_full_disk_is_not_blamed_on_the_archive(small, tmp_path, monkeypatch):
    def full(path, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    write(tmp_path / "cifar-100-python.tar.gz", contents())
    monkeypatch.setattr(cifar, "_unpack", full)
    with pytest.raises(RuntimeError, match=r"could not unpack .* into .* \(.*No space left.*\); make room there"):
        load_images("cifar-fs", tmp_path)


def test_missing_data_says_what_to_do(tmp_path):
    with pytest.raises(MissingDataError, match=r"fc100: neither cifar-100-python.tar.gz .*data fetch fc100"):
        load_images("fc100", tmp_path)
