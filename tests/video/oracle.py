"""What FFmpeg's own filters make of a file's pictures."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

EXACT_RGB = "scale=flags=bicubic+accurate_rnd+full_chroma_int+bitexact,format=rgb24"
# H.264's default, which the filter leaves to us.
LEFT_RGB = EXACT_RGB.replace("scale=", "scale=in_chroma_loc=left:")


def ffmpeg_rgb(path: Path, filters: str) -> NDArray[np.uint8]:
    """All frames through FFmpeg's own filter graph: the oracle for rotation and color."""
    frames = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream)
        last = source
        for text in filters.split(","):
            name, _, args = text.partition("=")
            node = graph.add(name, args)
            last.link_to(node)
            last = node
        last.link_to(graph.add("buffersink"))
        graph.configure()
        for frame in container.decode(stream):
            graph.push(frame)
            frames.append(graph.pull().to_ndarray())
    return np.stack(frames)
