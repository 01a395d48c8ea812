"""Image classification from folders, IDX files and .npz files."""

from __future__ import annotations

import builtins
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from lissome.core.errors import BadTask, MissingExtra
from lissome.core.task import SPLITS
from lissome.data import check_task, load_task
from lissome.data.idx import read_idx

RNG = np.random.default_rng(0)


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def pixels(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def task_of(write, text: str):
    return load_task(str(write("t.yaml", "kind: image-classification\n" + text)))


def refused(write, text: str, message: str) -> str:
    with pytest.raises(BadTask, match=message) as caught:
        task_of(write, text)
    return str(caught.value)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """pictures/cat and pictures/dog, 30 pictures each of 6 x 4 (height x width)."""
    from PIL import Image

    for label in ("dog", "cat"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(30):
            Image.fromarray(pixels(1, 6, 4, 3)[0]).save(tmp_path / "pictures" / label / f"{i}.png")
    (tmp_path / "pictures" / "cat" / "notes.txt").write_text("not a picture")
    return tmp_path / "pictures"


def test_a_folder_per_class(write, folders: Path) -> None:
    from PIL import Image

    task = task_of(write, "data: pictures\n")
    assert task.classes == ("cat", "dog")
    assert sum(task.sizes().values()) == 60
    batch = task.collate(task.splits["test"].inputs[:3], "longest")
    assert list(batch) == ["pixel_values"]
    assert batch["pixel_values"].shape == (3, 3, 6, 4)
    assert batch["pixel_values"].dtype == np.float32
    assert 0 <= batch["pixel_values"].min() <= batch["pixel_values"].max() <= 1
    assert "1 files in pictures are no pictures and were left out" in task.notes
    assert task.parse is not None
    path = folders / "dog" / "7.png"
    expected = np.asarray(Image.open(path)).transpose(2, 0, 1)
    assert (task.parse(str(path)) == expected).all()
    with pytest.raises(BadTask, match="the picture does not exist"):
        task.parse("nowhere.png")


def test_grey_pictures_have_one_channel_unless_asked(write, tmp_path: Path) -> None:
    from PIL import Image

    for label in "ab":
        (tmp_path / "p" / label).mkdir(parents=True)
        for i in range(20):
            Image.fromarray(pixels(1, 5, 5)[0]).save(tmp_path / "p" / label / f"{i}.png")
    assert task_of(write, "data: p\n").splits["test"].inputs[0].shape == (1, 5, 5)
    assert task_of(write, "data: p\nchannels: 3\nsize: 8\n").splits["test"].inputs[0].shape == (3, 8, 8)


def test_pictures_of_different_sizes_need_a_size(write, folders: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels(1, 9, 9, 3)[0]).save(folders / "dog" / "8.png")
    text = refused(write, "data: pictures\n", "pictures of different sizes: 0.png is 6 x 4, 8.png is 9 x 9")
    assert "size: [6, 4]" in text
    assert task_of(write, "data: pictures\nsize: [6, 4]\n").splits["train"].inputs[0].shape == (3, 6, 4)


@pytest.mark.parametrize("damage", [b"", b"no picture", None])
def test_a_damaged_picture_is_named(write, folders: Path, damage: bytes | None) -> None:
    path = folders / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60] if damage is None else damage)
    refused(write, "data: pictures\n", r"dog/3.png: the picture cannot be read")


def test_a_16_bit_picture_is_not_silently_clipped(write, folders: Path) -> None:
    from PIL import Image

    Image.fromarray(np.full((6, 4), 60_000, dtype=np.uint16)).save(folders / "dog" / "3.png")
    refused(write, "data: pictures\n", "16 or more bits")


def test_a_folder_without_pictures(write, tmp_path: Path) -> None:
    (tmp_path / "empty" / "a").mkdir(parents=True)
    refused(write, "data: empty\n", "empty: it holds no pictures")
    refused(write, "data: nowhere\n", r"t.yaml:2: .*nowhere. does not exist")


def test_without_pillow_the_extra_is_named(write, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("PIL"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtra, match=r"pip install .lissome\[images\]."):
        task_of(write, "data: pictures\n")


def test_idx_files_plain_and_compressed(write, tmp_path: Path) -> None:
    images, labels = pixels(80, 5, 4), (np.arange(80) % 4).astype(np.uint8)
    (tmp_path / "images-idx3-ubyte").write_bytes(idx(images))
    (tmp_path / "labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    task = task_of(write, "data: images-idx3-ubyte\nlabels: labels-idx1-ubyte.gz\n")
    assert task.classes == ("0", "1", "2", "3")
    for name in SPLITS:
        for image, target in zip(task.splits[name].inputs, task.splits[name].targets, strict=True):
            at = np.flatnonzero((images == image[0]).all(axis=(1, 2)))
            assert labels[at[0]] == target
    one = task.collate(task.splits["test"].inputs[:1], "longest")["pixel_values"]
    assert np.allclose(one, task.splits["test"].inputs[0][None] / 255)


def test_mean_and_std(write, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(60, 4, 4, 3), labels=np.arange(60) % 2)
    task = task_of(write, "data: a.npz\nmean: [0.5, 0.4, 0.3]\nstd: 0.25\ninput: x\n")
    raw = task.splits["test"].inputs[0]
    expected = (raw / 255 - np.array([0.5, 0.4, 0.3])[:, None, None]) / 0.25
    assert np.allclose(task.collate([raw], "longest")["x"][0], expected, atol=1e-5)
    refused(write, "data: a.npz\nmean: [0.5, 0.5]\n", r"t.yaml:3: `mean` has 2 values, the images have 3 channels")


def test_the_arrays_of_an_npz_as_splits(write, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x_train=pixels(60, 4, 4), y_train=np.arange(60) % 2, x_test=pixels(20, 4, 4), y_test=np.arange(20) % 2)
    text = "data: a.npz\nsplits:\n  train: {images: x_train, labels: y_train}\n  test: {images: x_test, labels: y_test}\n"
    task = task_of(write, text)
    assert len(task.splits["test"]) == 20
    assert sum(task.sizes().values()) == 80
    refused(write, text.replace("x_test", "x_tset"), r't.yaml:5: there is no array "x_tset" in a.npz. Did you mean "x_test"\?')


def test_pickles_in_an_npz_are_refused(write, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=pixels(60, 4, 4), labels=np.array(["a", None] * 30, dtype=object))
    assert "Python objects are pickles" in refused(write, "data: a.npz\n", "an array cannot be read safely")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 cut", b"junk"])
def test_a_damaged_npz(write, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(data)
    refused(write, "data: a.npz\n", r"a.npz: ")


def test_a_truncated_npz(write, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=pixels(60, 8, 8), labels=np.arange(60) % 2)
    held = bytearray((tmp_path / "a.npz").read_bytes())
    held[200:400] = bytes(200)
    (tmp_path / "a.npz").write_bytes(held)
    refused(write, "data: a.npz\n", r"a.npz: ")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((60, 16)), r"images of shape \(60, 16\)"),
        (np.zeros((60, 5, 4, 4)), r"images of shape \(60, 5, 4, 4\)"),
        (np.full((60, 4, 4), 300), "images of type int64 from 300 to 300"),
        (np.full((60, 4, 4), np.nan), "60 images hold NaN or infinity"),
        (np.zeros((59, 4, 4)), r"59 images, labels of shape \(60,\)"),
    ],
)
def test_arrays_that_are_no_images(write, tmp_path: Path, images: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(60) % 2)
    refused(write, "data: a.npz\n", message)


def test_text_labels_and_floats_already_scaled(write, tmp_path: Path) -> None:
    images = RNG.random((60, 4, 4))
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["no", "yes"] * 30))
    task = task_of(write, "data: a.npz\n")
    assert task.classes == ("no", "yes")
    assert task.collate(task.splits["test"].inputs, "longest")["pixel_values"].max() <= 1


@pytest.mark.parametrize(
    "data",
    [b"", b"\0\0", b"junk junk junk", idx(pixels(4, 3, 3))[:-1], idx(pixels(4, 3, 3)) + b"x", b"\0\0\x08\x03\0\0", b"\0\0\x08\x03" + b"\xff" * 12 + b"x"],
)
def test_a_damaged_idx_file(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a-idx3-ubyte"
    path.write_bytes(data)
    with pytest.raises(BadTask, match=r"not an IDX file|the IDX file is damaged"):
        read_idx(path, "t")
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(data)[:-4])
    with pytest.raises(BadTask, match=r"not an IDX file|damaged"):
        read_idx(path, "t")


@pytest.mark.parametrize(("code", "kind"), [(0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_of_other_types(tmp_path: Path, code: int, kind: str) -> None:
    values = np.array([[1, -2, 3]], dtype=kind)
    path = tmp_path / "a"
    path.write_bytes(idx(values, code))
    assert read_idx(path, "t").tolist() == [[1, -2, 3]]
    assert read_idx(path, "t").dtype.isnative


def test_copies_of_an_image_stay_together(write, tmp_path: Path) -> None:
    images = np.repeat(pixels(40, 4, 4), 3, axis=0)
    np.savez(tmp_path / "a.npz", images=images, labels=np.repeat(np.arange(40) % 2, 3))
    report = check_task(task_of(write, "data: a.npz\n"))
    assert report.across == ()
    assert sum(report.repeated.values()) == 80


@pytest.mark.network
def test_mnist_for_real(fetched, write) -> None:
    folder, _ = fetched("mnist")
    task = task_of(
        write,
        f"splits:\n  train: {{images: {folder}/train-images-idx3-ubyte, labels: {folder}/train-labels-idx1-ubyte}}\n"
        f"  test: {{images: {folder}/t10k-images-idx3-ubyte, labels: {folder}/t10k-labels-idx1-ubyte}}\n",
    )
    assert task.sizes() == {"train": 45_000, "calibration": 3_750, "validation": 11_250, "test": 10_000}
    assert task.classes == tuple("0123456789")
    assert np.bincount(task.splits["test"].targets).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
