"""Create the built-in sample catalogue: drawn product photos in the layout of the Kaggle data.

The numbers of photos in its largest groups, of repeated files, near copies and label conflicts are
those of the real data, so that all commands can be tried and tested without a download.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import imagehash
from PIL import Image

from ..cache_folder import CACHE_VARIABLE, cache_folder
from ..errors import CatalogError
from .designs import DESIGNS
from .drawing import draw_product
from .plan import SEED, Photo, Plan, make_plan
from .scenery import draw_photo

MIN_PX, MAX_PX = 64, 4096
# The columns of the real train.csv, in its order.
COLUMNS = ("posting_id", "image", "image_phash", "title", "label_group")
MARKER = "sample.json"
JPEG_QUALITY = 88
# Photos per task. All photos of a task show the same product, which is drawn once per task.
BATCH = 14


def sample_catalog(
    px: int = 256,
    folder: Path | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draw the sample's ``train.csv`` and ``train_images/``, unless they exist.

    The catalogue is created atomically: an interrupted call leaves no files.

    :param px: side of the square photos in pixels, 64 to 4096. With the same version of Pillow,
        equal values produce identical files.
    :param folder: folder of the catalogue; by default a folder in this project's cache.
    :param workers: number of threads; by default one per processor, at most 8. The result does not
        depend on it.
    :param progress: called as ``progress(done, total)`` with numbers of photos.
    :returns: the folder of the catalogue.
    :raises CatalogError: when ``px`` is out of range, ``folder`` holds other files, or the folder
        cannot be written to.
    """
    if isinstance(px, bool) or not isinstance(px, int) or not MIN_PX <= px <= MAX_PX:
        raise CatalogError(f"sample_px={px!r}: a whole number from {MIN_PX} to {MAX_PX} is allowed")
    in_cache = folder is None
    target = cache_folder() / f"sample-v1-{px}px" if folder is None else Path(folder)
    plan = make_plan()
    if _is_complete(target, plan, px):
        return target
    if not in_cache and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CatalogError(
            f"{target} is not empty and holds no complete sample of sample_px={px}; "
            "name an empty or new folder (nothing was changed)"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
            # The inner folder has default permissions; the temporary one is private to its owner.
            fresh = Path(temporary) / "sample"
            _write_catalog(fresh, plan, px, workers, progress)
            _move_in(fresh, target, plan, px, replace=in_cache)
    except OSError as error:
        raise CatalogError(
            f"The sample cannot be written to {target.parent} ({error.strerror or error}). "
            f"Choose another folder; {CACHE_VARIABLE} sets the folder of the cache."
        ) from error
    return target


def default_workers() -> int:
    """One thread per processor, at most 8, since each holds several pictures in memory."""
    return min(os.cpu_count() or 1, 8)


def _is_complete(folder: Path, plan: Plan, px: int) -> bool:
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        images = {file.name for file in (folder / "train_images").iterdir()}
    except (OSError, ValueError):
        return False
    complete = {row.image for row in plan.rows} <= images and (folder / "train.csv").is_file()
    return complete and marker == _marker(plan, px)


def _marker(plan: Plan, px: int) -> dict[str, object]:
    return {"seed": SEED, "px": px, "rows": len(plan.rows)}


def _move_in(fresh: Path, target: Path, plan: Plan, px: int, replace: bool) -> None:
    """Rename ``fresh`` to ``target``, unless another process has completed ``target`` meanwhile.

    With ``replace``, an incomplete target is replaced; otherwise it must be an empty folder.
    """
    if _is_complete(target, plan, px):
        return
    try:
        if replace and target.exists():
            target.rename(fresh.with_name("incomplete"))
        elif target.exists():
            target.rmdir()
        fresh.rename(target)
    except OSError as error:
        if not _is_complete(target, plan, px):
            raise CatalogError(f"The sample cannot be moved to {target}: {error}") from error


def _write_catalog(
    folder: Path,
    plan: Plan,
    px: int,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    images = folder / "train_images"
    images.mkdir(parents=True)
    hashes = _draw_all(plan.photos, images, px, workers or default_workers(), progress)
    with (folder / "train.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in plan.rows:
            writer.writerow((row.posting_id, row.image, hashes[row.image], *row[2:]))
    (folder / MARKER).write_text(json.dumps(_marker(plan, px)) + "\n", encoding="utf-8")


def _draw_all(
    photos: list[Photo],
    folder: Path,
    px: int,
    workers: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, str]:
    """Draw all photos into ``folder``; returns file name -> perceptual hash."""
    hashes: dict[str, str] = {}
    total = sum(1 + len(photo.copies) for photo in photos)
    with ThreadPoolExecutor(workers) as pool:
        tasks = [pool.submit(draw_batch, batch, folder, px) for batch in _batches(photos)]
        try:
            for task in as_completed(tasks):
                hashes |= task.result()
                if progress:
                    progress(len(hashes), total)
        except BaseException:
            # Tasks that have not started must not delay the exit, for instance after Ctrl-C.
            pool.shutdown(cancel_futures=True)
            raise
    return hashes


def _batches(photos: list[Photo]) -> Iterator[list[Photo]]:
    for group in range(len(DESIGNS)):
        members = [photo for photo in photos if photo.group == group]
        yield from (members[start : start + BATCH] for start in range(0, len(members), BATCH))


def draw_batch(photos: list[Photo], folder: Path, px: int) -> dict[str, str]:
    """Draw photos of one group and their near copies; returns file name -> perceptual hash."""
    design = DESIGNS[photos[0].group]
    # Supersampling smooths the edges of small photos. Large photos need less supersampling.
    product = draw_product(design, min(2 * px, px + 256))
    hashes = {}
    for photo in photos:
        rng = random.Random(f"{SEED}/{photo.group}/{photo.number}")
        picture = draw_photo(product, design.width, px, rng)
        content = _encoded(picture, quality=JPEG_QUALITY)
        (folder / photo.image).write_bytes(content)
        hashes[photo.image] = phash = _phash(content)
        for name in photo.copies:
            (folder / name).write_bytes(_near_copy(picture, phash, rng))
            hashes[name] = phash
    return hashes


def _encoded(picture: Image.Image, **options: int | bool) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **options)
    return stream.getvalue()


def _phash(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as picture:
        return str(imagehash.phash(picture))


def _near_copy(picture: Image.Image, phash: str, rng: random.Random) -> bytes:
    """Encode the picture with the strongest change that keeps its perceptual hash."""
    px = picture.width
    for shrink in sorted((rng.uniform(0.55, 0.9), 0.95, 1.0)):
        smaller = picture.resize((round(px * shrink),) * 2, Image.Resampling.BICUBIC)
        restored = smaller.resize((px, px), Image.Resampling.BICUBIC)
        for quality in (rng.randint(55, 75), 80, 92):
            content = _encoded(restored, quality=quality)
            if _phash(content) == phash:
                return content
    # Each of these changes alters the hash, so only the encoding is changed.
    return _encoded(picture, quality=JPEG_QUALITY, progressive=True)
