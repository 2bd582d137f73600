"""Maps over pictures: where a patch of the guard's square lies in the picture."""

import io

import numpy as np
import pytest
from PIL import Image

from crossguard_jax.report.heatmaps import overlay, patch_box, peak


@pytest.mark.parametrize(
    ("size", "patch", "crops", "box"),
    [
        ((40, 40), (1, 2), False, (20, 10, 30, 20)),
        # Padded to 80 x 80: 20 rows above and below are no picture.
        ((80, 40), (0, 0), False, (0, 0, 20, 0)),
        ((80, 40), (1, 3), False, (60, 0, 80, 20)),
        # The middle 40 x 40 of it.
        ((80, 40), (0, 0), True, (20, 0, 30, 10)),
        ((40, 80), (3, 3), True, (30, 50, 40, 60)),
    ],
)
def test_a_patch_lies_where_the_guard_saw_it(size, patch, crops, box):
    assert patch_box(size, 4, patch, crops) == box


@pytest.mark.parametrize("crops", [False, True])
@pytest.mark.parametrize("size", [(37, 91), (64, 64), (300, 17)])
def test_the_patches_cover_what_is_seen_without_a_gap(size, crops):
    seen = np.zeros((size[1], size[0]), int)
    for i in range(36):
        left, top, right, bottom = patch_box(size, 6, divmod(i, 6), crops)
        seen[top:bottom, left:right] += 1
    assert seen.max() == 1
    side = min(size)
    assert abs(seen.sum() - (side * side if crops else size[0] * size[1])) <= 2 * max(size)


def test_the_peak_is_a_part_of_the_picture_and_not_of_its_margin():
    heat = np.zeros((4, 4))
    heat[0, 1], heat[2, 3] = 9.0, 1.0
    assert peak(np.zeros((40, 80, 3), np.uint8), heat, crops=False) == (60, 20, 80, 40)


def test_an_overlay_keeps_the_size_and_colours_by_sign():
    heat = np.zeros((2, 2))
    heat[0, 0], heat[1, 1] = 2.0, -2.0
    drawn = Image.open(io.BytesIO(overlay(np.full((40, 40, 3), 128, np.uint8), heat, crops=False)))
    pixels = np.asarray(drawn).astype(int)
    assert drawn.size == (40, 40)
    assert pixels[10, 10, 0] > pixels[10, 10, 2] and pixels[30, 30, 2] > pixels[30, 30, 0]
    assert (pixels[10, 30] == 128).all()
