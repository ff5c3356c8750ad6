"""Episodes against a loop in plain Python that draws, turns and normalises image by image."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from plain_draws import plain_choice, plain_keys

from adjoint_meta.experiments.augmentation import CropAndFlip
from adjoint_meta.experiments.data.image_classes import ImageClasses
from adjoint_meta.experiments.few_shot import CLASSES, IMAGES, QUERY_CHANGES, SUPPORT_CHANGES, Episodes
from adjoint_meta.experiments.random_keys import keys

COUNTS = [4, 9, 5, 4, 7, 4]


@pytest.fixture
def classes():
    """Six classes of different sizes, no two pixels of an image alike."""
    starts = torch.tensor([0, *COUNTS]).cumsum(0)
    values = np.random.default_rng(0).integers(0, 256, (sum(COUNTS), 3, 4, 4))
    return ImageClasses("six", tuple("abcdef"), torch.from_numpy(values).to(torch.uint8), starts)


def plain_episode(classes, number, ways, shots, queries, *, seed, rotations, mean, std):
    """Support and query images of one episode, float64, and nothing vectorised."""
    turns = 4 if rotations else 1
    chosen = plain_choice(plain_keys(seed, CLASSES, number, ways), turns * len(classes))
    draws = plain_keys(seed, IMAGES, number, ways * (shots + queries))
    sets = ([], [])
    for way, turned in enumerate(chosen):
        turn, which = divmod(turned, len(classes))
        first, end = classes.starts[which : which + 2].tolist()
        own = draws[way * (shots + queries) : (way + 1) * (shots + queries)]
        for place, image in enumerate(plain_choice(own, end - first)):
            pixels = np.rot90(classes.pixels[first + image].numpy(), turn, (1, 2)) / 255.0
            sets[place >= shots].append((pixels - np.reshape(mean, (-1, 1, 1))) / np.reshape(std, (-1, 1, 1)))
    return [np.stack(images) for images in sets]


@pytest.mark.parametrize("rotations", [False, True])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), ([0.5, 0.4, 0.3], [0.2, 0.3, 0.1])])
def test_an_episode_is_what_a_loop_makes_of_it(classes, rotations, mean, std):
    options = {"seed": 3, "rotations": rotations, "mean": mean, "std": std}
    episodes = Episodes(classes, 5, 1, 3, **options, first=10)
    indices = [0, 4, 1, 2**33]
    got = episodes[indices]
    assert got.support.x.shape == (4, 5, 3, 4, 4) and got.query.x.shape == (4, 15, 3, 4, 4)
    assert got.support.x.dtype == got.query.x.dtype == torch.float32
    for row, index in enumerate(indices):
        support, query = plain_episode(classes, 10 + index, 5, 1, 3, **options)
        for batch, expected in ((got.support, support), (got.query, query)):
            # float32 keeps 24 bits; the largest number here is 10
            np.testing.assert_allclose(batch.x[row].numpy(), expected, atol=1e-5)
    assert got.support.y.tolist() == [[0, 1, 2, 3, 4]] * 4
    assert got.query.y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]] * 4
    assert got.support.y.dtype == torch.int64
    assert got.support.x.is_contiguous() and got.query.x.is_contiguous()


def test_support_and_query_share_no_image_and_classes_differ(classes):
    unique = torch.arange(len(classes.pixels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    numbered = ImageClasses("numbered", classes.names, unique.contiguous(), classes.starts)
    home = np.repeat(np.arange(6), COUNTS)
    batch = Episodes(numbered, 4, 2, 2, seed=0).fixed(200)
    support, query = ((each.x[..., 0, 0, 0] * 255).round().long().numpy() for each in (batch.support, batch.query))
    for shown, asked in zip(support, query, strict=True):
        assert len({*shown, *asked}) == 16
        assert np.array_equal(home[shown], home[asked])
        assert len(set(home[shown])) == 4
    assert set(support.ravel()) == set(range(len(home)))  # every image is seen


def test_an_episode_is_a_function_of_seed_and_index_alone(classes):
    augment = CropAndFlip(1)
    episodes = Episodes(classes, 2, 1, 1, seed=5, augment=augment)
    together, alone = episodes[0:8], episodes[[3]]
    assert torch.equal(together.support.x[3], alone.support.x[0])
    assert torch.equal(together.query.x[3], alone.query.x[0])
    later = Episodes(classes, 2, 1, 1, seed=5, augment=augment, first=3)[0]
    assert torch.equal(later.query.x, alone.query.x)
    assert not torch.equal(Episodes(classes, 2, 1, 1, seed=6, augment=augment)[3].query.x, alone.query.x)
    step = episodes.meta_batch(2, 4, seed=0, share=slice(1, 3))
    assert torch.equal(step.support.x, episodes[9:11].support.x)
    assert torch.equal(episodes.fixed(8).support.x, together.support.x)


def test_augmentation_changes_every_image_before_it_is_normalised(classes):
    augment = CropAndFlip(2)
    got = Episodes(classes, 2, 1, 2, seed=1, mean=0.5, std=0.5, augment=augment)[0:3]
    plain = Episodes(classes, 2, 1, 2, seed=1)[0:3]
    sets = ((got.support, plain.support, SUPPORT_CHANGES), (got.query, plain.query, QUERY_CHANGES))
    for changed, whole, stream in sets:
        points = whole.x.shape[1]
        draws = keys(1, stream, np.arange(3, dtype=np.uint64), 3 * points).reshape(-1, 3)
        pixels = augment((whole.x * 255).round().to(torch.uint8).flatten(0, 1), draws).unflatten(0, (3, points))
        torch.testing.assert_close(changed.x, (pixels.float() / 255 - 0.5) / 0.5)


def test_moving_to_a_device_moves_images_and_episodes(classes):
    episodes = Episodes(classes, 2, 1, 1, seed=0)
    assert episodes.to("meta") is episodes
    assert episodes.device.type == "meta" and episodes.pixels.dtype == torch.uint8
    assert episodes[0].support.x.device.type == episodes[0].support.y.device.type == "meta"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 7}, "six has 6 classes to draw from, got ways 7; ask for fewer ways"),
        ({"ways": 25, "rotations": True}, "has 24 classes"),
        ({"queries": 4}, r"six: class a has 4 images, expected at least 5 \(shots \+ queries\)"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"mean": [0.0, 0.0]}, "mean must be one number or 3, one a channel, got 2"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be positive"),
    ],
)
def test_what_cannot_be_is_refused(classes, change, message):
    options = {"ways": 2, "shots": 1, "queries": 1, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        Episodes(classes, **options)


def test_rotations_need_square_images(classes):
    oblong = ImageClasses("oblong", classes.names, classes.pixels[:, :, :3], classes.starts)
    with pytest.raises(ValueError, match="rotations need square images, got 3 × 4"):
        Episodes(oblong, 2, 1, 1, seed=0, rotations=True)


def test_neither_torchvision_nor_pillow_is_imported_before_an_image_is_decoded(root):
    code = (
        "import sys; from adjoint_meta.experiments.data.image_loading import load_images; "
        "from adjoint_meta.experiments.few_shot import Episodes; load_images('glyphs'); "
        "import adjoint_meta.experiments.data.image_archives; "
        "sys.exit(any(name in sys.modules for name in ('PIL', 'torchvision')))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
