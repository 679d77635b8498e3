"""Pictures on their way through a query: to a whole backbone, or to people."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from PIL import Image
from torch import Tensor

from nvpstore.codec.artifact import content_rgb, shown_rgb
from nvpstore.codec.build import Architecture

if TYPE_CHECKING:
    from nvpstore.query.contract import Batch

IMAGE_OPTIONS: Mapping[str, Mapping[str, object]] = {
    "png": {"compress_level": 3},
    "jpg": {"quality": 92},
    "webp": {"quality": 92},
}


class Pixels(Protocol):
    """Frames on their way to a whole backbone or to a person."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the source."""
        ...

    def for_backbone(self) -> Tensor:
        """RGB [t, 3, h, w] in 0 … 255, at any size."""
        ...

    def for_people(self) -> Tensor:
        """RGB uint8 [t, 3, height, width] at source size."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodedPixels:
    """The `rgb` stage's output [t, 3, H, W] and what it takes to show it."""

    rgb: Tensor
    arch: Architecture
    height: int
    width: int

    @property
    def size(self) -> tuple[int, int]:
        return self.height, self.width

    def for_backbone(self) -> Tensor:
        return content_rgb(self.rgb, self.arch)

    def for_people(self) -> Tensor:
        return shown_rgb(self.rgb.float(), self.arch, self.height, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourcePixels:
    """Frames of the original, uint8 [t, 3, height, width]."""

    rgb: Tensor

    @property
    def size(self) -> tuple[int, int]:
        return self.rgb.shape[2], self.rgb.shape[3]

    def for_backbone(self) -> Tensor:
        return self.rgb

    def for_people(self) -> Tensor:
        return self.rgb


def image_rows(rgb_tchw: Tensor, batch: Batch, image_format: str) -> pa.Table:
    """Rows of `frames`: uint8 [t, 3, height, width], each encoded."""
    height, width = rgb_tchw.shape[2:]
    count = len(batch.frames)
    return pa.table(
        {
            "frame": pa.array(batch.frames),
            "width": pa.array(np.full(count, width, np.int32)),
            "height": pa.array(np.full(count, height, np.int32)),
            "image": pa.array([_encode(image, image_format) for image in rgb_tchw], pa.binary()),
        }
    )


def _encode(rgb_chw: Tensor, image_format: str) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(rgb_chw.permute(1, 2, 0).cpu().numpy())
    image.save(buffer, "jpeg" if image_format == "jpg" else image_format, **IMAGE_OPTIONS[image_format])
    return buffer.getvalue()
