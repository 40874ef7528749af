"""Makes thumbnails. Real work for a processor, which is why it happens in processes that can be killed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter, ImageOps

LONGEST_SIDE = {"small": 160, "medium": 480, "large": 1600}
GENTLE = 0.92
"""The large one is what people look at closely: it is made in steps of 8 %, sharpened a little after each. Takes seconds."""

Progress = Callable[[float, str], None]


def thumbnail(source: Path, target: Path, size: str, progress: Progress) -> tuple[int, int]:
    """Write a smaller copy of the picture `source` as a JPEG file and return its width and height in pixels.

    `size` is small, medium or large. `target` appears whole or not at all, also when this process is killed in the middle.
    Raises PIL.UnidentifiedImageError for what is no picture.
    """
    with Image.open(source) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGB")
    wanted = fitted(picture.size, LONGEST_SIDE[size])
    if size == "large":
        picture = _gently(picture, wanted, progress)
    picture = resized(picture, wanted)
    unfinished = target.with_suffix(f".{os.getpid()}.part")
    picture.save(unfinished, "JPEG", quality=88)
    unfinished.replace(target)
    return wanted


def fitted(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """The size of the same shape whose longest side is `longest`; never larger than it was."""
    scale = min(1.0, longest / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def resized(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A copy of that size."""
    return picture.resize(size, Image.Resampling.LANCZOS)  # pyright: ignore[reportUnknownMemberType] - one of its types is numpy's


def _gently(picture: Image.Image, wanted: tuple[int, int], progress: Progress) -> Image.Image:
    whole = picture.width - wanted[0]
    while picture.width * GENTLE > wanted[0]:
        step = (round(picture.width * GENTLE), round(picture.height * GENTLE))
        picture = resized(picture, step).filter(ImageFilter.UnsharpMask(radius=2, percent=20))
        progress(1 - (picture.width - wanted[0]) / whole, f"{picture.width}×{picture.height}")
    return picture
