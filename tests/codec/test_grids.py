"""Features laid onto grids: regions, borders, time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from nvpstore.codec.grids import MOTION_PICTURES, WHOLE, Region, moving, on_grid, outside


def plane(height: int, width: int) -> torch.Tensor:
    """[1, 2, h, w]: how far across and down a cell's centre is, in fractions."""
    ys, xs = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    return torch.stack(torch.broadcast_tensors(xs[None, :], ys[:, None]))[None]


def test_the_whole_picture_is_plain_bilinear() -> None:
    x = torch.randn(3, 4, 9, 13)
    expected = F.interpolate(x, (5, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(on_grid(x, (5, 6)), expected, rtol=0, atol=0)


def test_a_region_is_where_it_says() -> None:
    region = Region(left=0.25, top=0.1, right=0.75, bottom=0.5)
    found = on_grid(plane(40, 80), (4, 5), region=region)[0]
    torch.testing.assert_close(found[0, 0], 0.25 + 0.5 * (torch.arange(5) + 0.5) / 5, atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1, :, 0], 0.1 + 0.4 * (torch.arange(4) + 0.5) / 4, atol=1e-5, rtol=0)


def test_outside_of_the_picture_its_border_repeats_and_is_marked() -> None:
    region = Region(top=-0.5, bottom=1.5)
    found = on_grid(plane(40, 80), (4, 4), region=region)[0]
    torch.testing.assert_close(found[1, 0], torch.full((4,), 0.5 / 40))
    assert outside((4, 4), region).tolist() == [[[1.0] * 4, [0.0] * 4, [0.0] * 4, [1.0] * 4]]
    assert region.reaches_outside
    assert not WHOLE.reaches_outside


def test_a_region_of_a_part_of_a_picture() -> None:
    assert Region(left=0.5).within(0.8, 0.5) == Region(left=0.4, top=0.0, right=0.8, bottom=0.5)
    with pytest.raises(ValueError, match="left < right"):
        Region(left=1.0)


def test_clips_are_linear_in_time_with_the_ends_at_the_ends() -> None:
    pictures = torch.arange(16).float()[:, None, None, None].expand(16, 1, 2, 2)
    assert on_grid(pictures, (8, 2, 2), frames=8)[:, 0, :, 0, 0].tolist() == [
        [0, 1, 2, 3, 4, 5, 6, 7],
        [8, 9, 10, 11, 12, 13, 14, 15],
    ]
    found = on_grid(pictures, (3, 2, 2), frames=8)
    assert found.shape == (2, 1, 3, 2, 2)
    assert found[1, 0, :, 0, 0].tolist() == [8, 11.5, 15]


def test_motion_is_what_changes_from_the_picture_before_to_the_one_after() -> None:
    pictures = torch.tensor([0.0, 1, 4, 9, 5, 5, 5, 5])[:, None, None, None].expand(8, 1, 2, 2)
    found = on_grid(pictures, (4, 2, 2), frames=4, motion=True)
    assert found.shape == (2, 2, 4, 2, 2)
    assert found[0, 0, :, 0, 0].tolist() == [0, 1, 4, 9]
    assert found[0, 1, :, 0, 0].tolist() == [MOTION_PICTURES * x for x in (1, 2, 4, 5)]
    assert not found[1, 1].any()
    # It is that of the pictures, on coarser times as well; a picture alone does not move.
    assert on_grid(pictures, (2, 2, 2), frames=4, motion=True)[0, 1, :, 0, 0].tolist() == [4, 20]
    assert not on_grid(pictures, (1, 2, 2), frames=1, motion=True)[:, 1].any()


@pytest.mark.parametrize(
    ("grids", "wanted"),
    [
        ([(4, 5)], [False]),
        ([(8, 4, 5)], [True]),
        ([(2, 4, 5), (8, 4, 5)], [False, True]),
        ([], []),
    ],
)
def test_volumes_that_are_finest_in_time_have_motion(
    grids: list[tuple[int, ...]], wanted: list[bool]
) -> None:
    assert list(moving(grids)) == wanted


def test_a_cell_on_the_edge_is_inside_however_it_was_rounded() -> None:
    # Centres at −0.2, 0.2, 0.6 and 1.
    region = Region(top=-0.4, bottom=1.2)
    assert outside((4, 1), region)[0, :, 0].tolist() == [1, 0, 0, 0]
    nearly = Region(top=-0.4, bottom=1.2000001)
    assert outside((4, 1), nearly)[0, :, 0].tolist() == [1, 0, 0, 0]
    assert not Region(top=-1e-7, bottom=1 + 1e-7).reaches_outside


def test_regions_are_the_same_on_clips_and_pictures() -> None:
    pictures = torch.randn(6, 2, 9, 12)
    region = Region(left=-0.1, top=0.2, right=0.6, bottom=1.4)
    clips = on_grid(pictures, (3, 4, 5), region=region, frames=3)
    torch.testing.assert_close(clips.transpose(1, 2).flatten(0, 1), on_grid(pictures, (4, 5), region=region))
    assert outside((3, 4, 5), region).shape == (1, 3, 4, 5)
    assert torch.equal(outside((3, 4, 5), region)[:, 1], outside((4, 5), region))


def test_one_time_is_the_first_picture() -> None:
    pictures = torch.arange(4.0)[:, None, None, None].expand(4, 1, 2, 2)
    assert on_grid(pictures, (1, 2, 2), frames=4).flatten().tolist() == [0] * 4
