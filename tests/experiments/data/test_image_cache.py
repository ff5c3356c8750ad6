"""What is stored is what comes back, whole or not at all."""

import numpy as np
import pytest
import torch

from adjoint_meta.experiments.data.errors import DataError
from adjoint_meta.experiments.data.image_cache import cached, store_split

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 1, 3, 3)).astype(np.uint8)


def build(folder):
    build.calls += 1
    for split in ("train", "test"):
        images = [(place, PIXELS[place]) for place in (4, 0, 3, 1, 2)]
        store_split(folder, split, {"b": 2, "a": 3}, (1, 3, 3), images)


@pytest.fixture(autouse=True)
def counted():
    build.calls = 0


def test_stored_once_and_mapped_after(cache):
    for _ in range(3):
        splits = cached("set", "key", build)
    assert build.calls == 1 and list(splits) == ["train", "test"]
    classes = splits["train"]
    assert classes.names == ("b", "a") and classes.starts.tolist() == [0, 2, 5]
    assert torch.equal(classes.pixels, torch.from_numpy(PIXELS))
    cached("set", "another key", build)
    cached("another set", "key", build)
    assert build.calls == 3
    assert sorted(path.name.split("-")[0] for path in (cache / "images").iterdir()) == ["another set", "set", "set"]


@pytest.mark.parametrize("harm", ["cut", "missing", "index"])
def test_what_is_not_whole_is_built_again(harm, cache):
    cached("set", "key", build)
    (folder,) = (cache / "images").iterdir()
    if harm == "cut":
        (folder / "test.npy").write_bytes((folder / "test.npy").read_bytes()[:-1])
    elif harm == "missing":
        (folder / "test.npy").unlink()
    else:
        (folder / "classes.json").write_text("{")
    assert torch.equal(cached("set", "key", build)["test"].pixels, torch.from_numpy(PIXELS))
    assert build.calls == 2


def test_a_failure_leaves_nothing_behind(cache):
    def fail(folder):
        build(folder)
        raise DataError("a broken image")

    with pytest.raises(DataError, match="a broken image"):
        cached("set", "key", fail)
    assert list((cache / "images").iterdir()) == []


def test_of_two_processes_at_once_the_first_wins(cache):
    def slow(folder):
        build(folder)
        cached("set", "key", build)  # another process, which is done before

    with pytest.MonkeyPatch.context() as patch:
        numbers = iter((1, 2))
        patch.setattr("os.getpid", lambda: next(numbers))
        splits = cached("set", "key", slow)
    assert torch.equal(splits["test"].pixels, torch.from_numpy(PIXELS))
    assert len(list((cache / "images").iterdir())) == 1


def test_a_cache_that_cannot_be_written_to_is_one_clear_error(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the cache should be")
    with pytest.raises(RuntimeError, match=r"could not store .*; make room there, or make it writable"):
        cached("set", "key", build)
