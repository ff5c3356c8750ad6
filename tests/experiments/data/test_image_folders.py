"""mini-ImageNet and tieredImageNet in every layout, with a handful of classes."""

import pytest
import torch
from image_builders import plain, snapshot, write

from adjoint_meta.experiments.data.errors import DataError, MissingDataError
from adjoint_meta.experiments.data.image_loading import load_images

# Classes of the official split of mini-ImageNet.
CLASSES = {"train": ("n01532829", "n01558993"), "val": ("n01855672",), "test": ("n01930112", "n01981276")}
GREYS = {name: 10 * place for place, name in enumerate(name for names in CLASSES.values() for name in names)}


def images(name: str) -> dict[str, bytes]:
    """Three images of a class, each a grey of its own."""
    return {f"{name}{place:08d}.png": plain(GREYS[name] + place, (8, 9)) for place in (1, 2, 3)}


def inside(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def lay_out(root, layout):
    every = [(split, name) for split, names in CLASSES.items() for name in names]
    if layout == "folders":
        for split, name in every:
            write(root / split / name, images(name))
    elif layout == "bare classes":
        for _, name in every:
            write(root / name, images(name))
    elif layout == "class archives":
        for place, (split, name) in enumerate(every):
            write(root / split / f"{name}{('.tar', '.zip', '.tar.gz')[place % 3]}", images(name))
    elif layout == "split archives":
        for place, (split, names) in enumerate(CLASSES.items()):
            files = {key: data for name in names for key, data in inside(f"{split}/{name}", images(name)).items()}
            write(root / f"{split}{('.tar', '.zip', '.tgz')[place]}", files)
    elif layout == "tables":
        for split, names in CLASSES.items():
            lines = [f"{file},{name}" for name in names for file in images(name)]
            write(root, {f"{split}.csv": "\n".join(["filename,label", *lines, ""]).encode()})
            for name in names:
                write(root / "images", images(name))
    elif layout == "one archive":
        files = {f"mini/{key}": d for s, n in every for key, d in inside(f"{s}/{n}", images(n)).items()}
        write(root.with_name(f"{root.name}.zip"), files)
    return root


def load(data_dir, **options):
    with pytest.warns(UserWarning, match="is not the published mini-imagenet: it holds 2, 1, 2 classes"):
        return load_images("mini-imagenet", data_dir, **options)


@pytest.mark.parametrize(
    "layout", ["folders", "bare classes", "class archives", "split archives", "tables", "one archive"]
)
@pytest.mark.parametrize("called", ["mini-imagenet", "miniImageNet"])
def test_every_layout_gives_the_same_images(layout, called, tmp_path):
    lay_out(tmp_path / called, layout)
    before = snapshot(tmp_path)
    splits = load(tmp_path)
    assert {key.removesuffix("idation"): classes.names for key, classes in splits.items()} == CLASSES
    for classes in splits.values():
        assert classes.shape == (3, 84, 84)
        expected = [GREYS[name] + place for name in classes.names for place in (1, 2, 3)]
        assert torch.equal(classes.pixels.flatten(1).unique(dim=1).flatten(), torch.tensor(expected, dtype=torch.uint8))
    assert {path: data for path, data in snapshot(tmp_path).items() if path in before} == before


def test_classes_of_any_name_in_folders_of_the_split(tmp_path):
    for split in ("train", "valid", "test"):
        write(tmp_path / "mini-imagenet" / split / f"{split} class", images("n01532829"))
    splits = load_images("mini-imagenet", tmp_path, split="folders")
    assert [classes.names for classes in splits.values()] == [("train class",), ("valid class",), ("test class",)]


def test_tiered_imagenet_takes_its_classes_out_of_imagenet(tmp_path):
    """n01530575 trains, n02099267 validates and n03314780 tests; n01496331 tests, and n01632458 is in none."""
    names = ("n01530575", "n02099267", "n03314780", "n01496331", "n01632458")
    for name in names:
        write(tmp_path / "tiered_imagenet" / f"{name}.tar", {f"{name}_1.JPEG": plain(50, kind="JPEG")})
    with pytest.warns(UserWarning, match="1, 1, 2 classes for training, validation and test, expected 351, 97, 160"):
        splits = load_images("tiered-imagenet", tmp_path)
    assert [classes.names for classes in splits.values()] == [names[:1], names[1:2], ("n01496331", "n03314780")]


def test_a_class_in_another_split_than_the_official_one_is_refused(tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "folders")
    write(root / "train" / "n01855672", images("n01855672"))
    with pytest.raises(
        DataError, match=r"puts class n01855672 into train, but the official split has it in validation; move it, or"
    ):
        load_images("mini-imagenet", tmp_path)
    with pytest.raises(DataError, match="class n01855672 lies in both train and validation"):
        load_images("mini-imagenet", tmp_path, split="folders")


def test_a_class_that_is_not_official_is_refused_where_a_split_is_claimed(tmp_path):
    write(lay_out(tmp_path / "mini-imagenet", "folders") / "test" / "n99999999", images("n01532829"))
    with pytest.raises(DataError, match="puts class n99999999 into test, but it is none of the official split"):
        load_images("mini-imagenet", tmp_path)


def test_a_split_without_classes_is_refused(tmp_path):
    write(tmp_path / "mini-imagenet" / "train" / "n01532829", images("n01532829"))
    with pytest.raises(DataError, match="holds no class for validation; put there a folder mini-imagenet with train"):
        load_images("mini-imagenet", tmp_path)


@pytest.mark.parametrize("where", ["", "train"])
def test_an_image_without_a_class_is_refused(where, tmp_path):
    write(lay_out(tmp_path / "mini-imagenet", "folders") / where, {"stray.png": plain(0)})
    with pytest.raises(DataError, match=r"stray\.png lies in no folder of a class"):
        load_images("mini-imagenet", tmp_path)


def test_folders_must_claim_a_split_when_they_decide(tmp_path):
    lay_out(tmp_path / "mini-imagenet", "bare classes")
    with pytest.raises(DataError, match="lies in no folder train, val or test, which decide the split"):
        load_images("mini-imagenet", tmp_path, split="folders")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n0153282900000009.png,n01532829", r"train\.csv, line 8: there is no image n0153282900000009\.png below"),
        ("n0153282900000001.png", r"train\.csv, line 8: got 1 fields, expected FILENAME,CLASS"),
        (
            "n0153282900000001.png,n01558993",
            r"train\.csv, line 8: n0153282900000001\.png is listed before, in .*train\.csv, line 2; take one line out",
        ),
    ],
)
def test_a_line_of_a_table_that_fits_nothing_is_named(line, message, tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "tables")
    with (root / "train.csv").open("a") as table:
        table.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        load_images("mini-imagenet", tmp_path)


def test_an_image_of_one_table_in_another_is_refused(tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "tables")
    with (root / "test.csv").open("a") as table:
        table.write("n0153282900000001.png,n01930112\n")
    with pytest.raises(DataError, match=r"test\.csv, line 8: n0153282900000001\.png is listed before, in .*train\.csv"):
        load_images("mini-imagenet", tmp_path)


def test_a_name_in_a_table_that_two_files_have_is_refused(tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "tables")
    write(root / "images" / "other", {"n0153282900000002.png": plain(0)})
    with pytest.raises(DataError, match=r"train\.csv, line 3: n0153282900000002\.png is both .* and .*, expected one"):
        load_images("mini-imagenet", tmp_path)


def test_a_table_in_another_encoding_is_named(tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "tables")
    with (root / "val.csv").open("ab") as table:
        table.write("größe.png,n01855672\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"val\.csv is no table of FILENAME,CLASS .*restore it"):
        load_images("mini-imagenet", tmp_path)


@pytest.mark.parametrize("layout", ["folders", "bare classes"])
def test_an_archive_beside_its_unpacked_folder_does_not_double_its_class(layout, tmp_path):
    """Else the same image could be in the support and the query of an episode."""
    root = lay_out(tmp_path / "mini-imagenet", layout)
    beside = root / "train" if layout == "folders" else root
    write(beside / "n01558993.tar", images("n01558993"))
    with pytest.raises(
        DataError, match=r"class n01558993 holds n0155899300000001\.png twice, as .* and .*; remove one"
    ):
        load_images("mini-imagenet", tmp_path)


def test_a_changed_table_counts(tmp_path):
    root = lay_out(tmp_path / "mini-imagenet", "tables")
    assert load(tmp_path)["train"].counts.tolist() == [3, 3]
    lines = (root / "train.csv").read_text().splitlines()
    (root / "train.csv").write_text("\n".join(lines[:-1]))
    assert load(tmp_path)["train"].counts.tolist() == [3, 2]


@pytest.mark.parametrize("name", ["mini-imagenet", "tiered-imagenet"])
def test_missing_data_says_how_to_lay_it_out(name, tmp_path):
    with pytest.raises(
        MissingDataError, match=rf"{name} is not in .*, and cannot be fetched; put there a folder {name} with"
    ):
        load_images(name, tmp_path)
