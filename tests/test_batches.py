"""Batches: every photo once an epoch, in an order and variant that depend only on the seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from shopee_mlflow.data.batches import Batches, PixelSource
from shopee_mlflow.data.transforms import PLAIN, Draws, Transform, transform_named


def named(augment: str) -> Transform:
    transform = transform_named(augment)
    assert transform is not None
    return transform


ORIGINAL = named("original")
SIDE = 6
HORIZONTAL_FLIP, VERTICAL_FLIP, GRAYSCALE = 1, 2, 3
VARIANTS = range(4)
REFERENCES: dict[int, Callable[..., object]] = {
    HORIZONTAL_FLIP: v2.RandomHorizontalFlip(p=1),
    VERTICAL_FLIP: v2.RandomVerticalFlip(p=1),
    GRAYSCALE: v2.Grayscale(3),
}


@pytest.fixture
def pixels() -> np.ndarray:
    """40 photos of noise, so that no variant of one equals a variant of another."""
    return np.random.default_rng(0).integers(0, 256, (40, SIDE, SIDE, 3), dtype=np.uint8)


def batches_of(pixels: np.ndarray, rows: np.ndarray | None = None, **options: object) -> Batches:
    """Batches whose label of a photo is its row in the source."""
    settings = {"batch_size": 7, "device": torch.device("cpu"), **options}
    settings["transform"] = transform_named(str(settings.pop("augment", "none")))
    rows = np.arange(len(pixels)) if rows is None else rows
    return Batches(PixelSource(pixels), rows=rows, labels=np.arange(len(pixels)), **settings)


def collect(batches: Batches, number: int = 0) -> tuple[Tensor, list[int], list[int]]:
    """All inputs, all labels and the sizes of the batches of one epoch."""
    inputs, labels = zip(*((b.inputs, b.labels) for b in batches.epoch(number)), strict=True)
    return torch.cat(inputs), torch.cat(labels).tolist(), [len(part) for part in labels]


def variant_of(image: Tensor, photo: np.ndarray) -> int:
    """Which variant of a photo an image is."""
    plain = torch.from_numpy(photo).permute(2, 0, 1)
    candidates = {PLAIN: plain, **{name: apply(plain) for name, apply in REFERENCES.items()}}
    [found] = [name for name, candidate in candidates.items() if torch.equal(image, candidate)]
    return found


def test_half_of_the_variants_are_plain_and_the_others_alike() -> None:
    drawn = ORIGINAL.draw(60_000, np.random.default_rng(0))
    counts = np.bincount(drawn, minlength=len(VARIANTS))
    expected = 60_000 * np.array([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    # The 99.9 % point of chi-square with 3 degrees of freedom.
    assert ((counts - expected) ** 2 / expected).sum() < 16.27
    assert counts.shape == (4,)


def test_variants_follow_from_the_generator() -> None:
    first, again = (ORIGINAL.draw(100, np.random.default_rng(5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first != ORIGINAL.draw(100, np.random.default_rng(6))).any()
    assert ORIGINAL.draw(0, np.random.default_rng(5)).shape == (0,)


@pytest.mark.parametrize("variant", REFERENCES)
def test_operations_equal_torchvision_on_tensors(variant: int, pixels: np.ndarray) -> None:
    images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2)
    expected = REFERENCES[variant](images.clone())
    result = ORIGINAL.apply(images, np.full(len(images), variant))
    assert torch.equal(result, expected)
    assert result.dtype == torch.uint8


@pytest.mark.parametrize("variant", REFERENCES)
def test_operations_equal_torchvision_on_photos(variant: int, pixels: np.ndarray) -> None:
    expected = np.asarray(REFERENCES[variant](Image.fromarray(pixels[0])))
    images = PixelSource(pixels).take(np.array([0]), Draws(ORIGINAL, np.array([variant])))
    result = images[0].permute(1, 2, 0).numpy()
    # Pillow and torchvision round grey differently.
    tolerance = 1 if variant == GRAYSCALE else 0
    assert np.abs(result.astype(int) - expected).max() <= tolerance


def test_each_photo_of_a_batch_gets_its_own_variant(pixels: np.ndarray) -> None:
    rows, variants = np.array([3, 3, 9, 3, 3, 0]), np.array([0, 1, 1, 2, 3, 0])
    images = PixelSource(pixels).take(rows, Draws(ORIGINAL, variants))
    found = [variant_of(image, pixels[row]) for image, row in zip(images, rows, strict=True)]
    assert found == variants.tolist()


def test_images_are_uint8_in_channels_last_order(pixels: np.ndarray) -> None:
    images = PixelSource(pixels).take(np.array([4, 2]))
    assert images.shape == (2, 3, SIDE, SIDE)
    assert images.dtype == torch.uint8
    assert images.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(images.permute(0, 2, 3, 1).numpy(), pixels[[4, 2]])


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("augment", ["none", "original", "crop", "light", "strong"])
def test_epoch_sees_every_row_once(pixels: np.ndarray, train: bool, augment: str) -> None:
    rows = np.array([5, 30, 2, 17, 8, 9, 21, 39, 0, 11])
    batches = batches_of(pixels, rows, batch_size=4, train=train, augment=augment)
    for number in range(3):
        inputs, labels, sizes = collect(batches, number)
        assert sorted(labels) == sorted(rows)
        assert (labels == rows.tolist()) == (not train)
        assert sizes == [4, 4, 2]
        assert inputs.shape == (10, 3, SIDE, SIDE)
    assert batches.photos == 10
    assert len(batches) == 3


def test_labels_belong_to_their_photos(pixels: np.ndarray) -> None:
    batches = batches_of(pixels, train=True, augment="original", batch_size=10)
    inputs, labels, _ = collect(batches)
    found = [variant_of(image, pixels[row]) for image, row in zip(inputs, labels, strict=True)]
    assert set(found) == set(VARIANTS)
    # Every batch has variants of its own.
    assert len({tuple(found[start : start + 10]) for start in range(0, 40, 10)}) == 4


def test_labels_are_looked_up_by_row(pixels: np.ndarray) -> None:
    labels = np.arange(100, 100 + len(pixels))
    batches = Batches(
        PixelSource(pixels), np.array([7, 3]), labels, batch_size=2, device=torch.device("cpu")
    )
    [batch] = batches.epoch()
    found = batch.labels
    assert found.tolist() == [107, 103]
    assert found.dtype == torch.int64


def test_without_augmentation_all_photos_are_plain(pixels: np.ndarray) -> None:
    inputs, labels, _ = collect(batches_of(pixels, train=True, augment="none"), number=4)
    np.testing.assert_array_equal(inputs.permute(0, 2, 3, 1).numpy(), pixels[labels])


def test_augmentation_does_not_change_the_order(pixels: np.ndarray) -> None:
    _, plain, _ = collect(batches_of(pixels, train=True))
    _, augmented, _ = collect(batches_of(pixels, train=True, augment="original"))
    assert plain == augmented


def test_same_seed_and_epoch_are_identical(pixels: np.ndarray) -> None:
    batches = batches_of(pixels, train=True, augment="original", seed=3)
    first, labels, _ = collect(batches, 5)
    collect(batches, 6)
    for other in (batches, batches_of(pixels, train=True, augment="original", seed=3)):
        again, same, _ = collect(other, 5)
        assert labels == same
        assert torch.equal(first, again)


@pytest.mark.parametrize(("seed", "number"), [(3, 6), (4, 5), (5, 3)])
def test_other_seed_or_epoch_is_another_order_and_variant(
    pixels: np.ndarray, seed: int, number: int
) -> None:
    options = {"train": True, "augment": "original"}
    first, labels, _ = collect(batches_of(pixels, seed=3, **options), 5)
    second, others, _ = collect(batches_of(pixels, seed=seed, **options), number)
    assert labels != others
    # Put back in the order of the rows, the photos still differ in their variants.
    assert not torch.equal(first[np.argsort(labels)], second[np.argsort(others)])


def test_variants_change_from_epoch_to_epoch_without_shuffling_too(pixels: np.ndarray) -> None:
    batches = batches_of(pixels, augment="original")
    first, second = collect(batches, 0), collect(batches, 1)
    assert first[1] == second[1]
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize(
    ("photos", "batch_size", "train", "sizes"),
    [
        (9, 4, True, [4, 5]),
        (9, 4, False, [4, 4, 1]),
        (10, 4, True, [4, 4, 2]),
        (8, 4, True, [4, 4]),
        (5, 4, True, [5]),
        (3, 4, True, [3]),
        (1, 4, True, [1]),
        (4, 1, False, [1, 1, 1, 1]),
    ],
)
def test_last_training_batch_is_never_a_single_photo(
    pixels: np.ndarray, photos: int, batch_size: int, train: bool, sizes: list[int]
) -> None:
    batches = batches_of(pixels, np.arange(photos), batch_size=batch_size, train=train)
    inputs, labels, found = collect(batches)
    assert found == sizes
    assert len(batches) == len(sizes)
    assert sorted(labels) == list(range(photos))
    assert len(inputs) == photos


def test_augmentation_never_changes_the_source(pixels: np.ndarray) -> None:
    before = pixels.copy()
    batches = batches_of(pixels, batch_size=40, train=True, augment="original")
    for number in range(3):
        for inputs in (batch.inputs for batch in batches.epoch(number)):
            inputs.zero_()
    np.testing.assert_array_equal(pixels, before)


def test_memory_mapped_pixels_serve_as_well(pixels: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", pixels)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="c")
    for first, second in zip(
        collect(batches_of(mapped, train=True, augment="original")),
        collect(batches_of(pixels, train=True, augment="original")),
        strict=True,
    ):
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second))


def test_order_is_not_drawn_from_global_random_state(pixels: np.ndarray) -> None:
    batches = batches_of(pixels, train=True, augment="original")
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    collect(batches)
    assert torch.equal(torch.get_rng_state(), states[0])
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])
