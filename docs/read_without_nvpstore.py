"""python read_without_nvpstore.py ARCHIVE [VIDEO [FOLDER]]: a stored video's frames, without nvpstore.

ARCHIVE is an archive's folder (copy one from an object store with any tool). Without VIDEO the stored videos
are listed. VIDEO is an id or a name: each frame's number, pts and seconds are printed, and with FOLDER its
picture is written there as PPM. Needs torch and pyarrow, on a little-endian machine. Follows format.md.
"""

import base64
import ctypes
import hashlib
import io
import json
import math
import sys
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

KINDS = ("init", "video", "routes", "task", "meta", "results", "erase", "gc", "view", "stabilizer")
FOLDERS = ("videos", "sources", "results")  # where a video's objects are
BATCH = 16  # frames decoded at once: any number gives the same pictures, but for float rounding


def check(right: bool, problem: str) -> None:
    if not right:
        raise ValueError(problem)


def log_entries(root: Path) -> Iterator[dict]:
    """All entries in order, each verified by its checksum and against the one before it ("The log")."""
    names = sorted(path.name for path in (root / "log").glob("[0-9]*.json"))
    check(bool(names), f"{root} is not an archive")
    previous = ""
    for number, name in enumerate(names):
        check(name == f"{number:020d}.json", f"log entry {number} is missing, though {name} exists")
        entry = json.loads((root / "log" / name).read_bytes())
        check(entry["format"] == 1, f"{name} has format version {entry['format']}, this reads version 1")
        checksum = entry.pop("checksum")
        canonical = json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        check(hashlib.sha256(canonical.encode()).hexdigest() == checksum, f"{name} is damaged")
        follows = entry["number"] == number and entry["previous_digest"] == previous
        check(follows, f"{name} does not follow the entry before it")
        check(entry["kind"] in KINDS, f"{name}: unknown kind {entry['kind']!r}, a newer release wrote it")
        previous = checksum
        yield entry


def objects_in_force(root: Path) -> dict[str, dict]:
    """{key: {"key", "size_bytes", "sha256"}} without what was replaced or erased ("The state")."""
    state: dict[str, dict] = {}
    for entry in log_entries(root):
        named = {item["key"]: item for item in entry["objects"]}
        state = {key: item for key, item in state.items() if not is_replaced(key, entry, named)} | named
    return state


def is_replaced(key: str, entry: dict, named: dict) -> bool:  # answers (results) follow from routes
    kind, (folder, own, *rest) = entry["kind"], key.split("/")
    if kind in ("gc", "results"):
        return key in entry["removed"]
    about = own == entry["subject"] and folder in (FOLDERS if kind in KINDS[:-2] else [f"{kind}s"])
    if not about or kind in ("erase", "view") or (kind == "video" and rest[0] != "meta"):
        return about
    like = f"videos/{own}/routes/{rest[0]}/" if folder == "results" else key.rpartition("/")[0] + "/"
    return any(other.startswith(like) for other in named or [like])


def fetch(root: Path, item: dict) -> bytes:
    data = (root / item["key"]).read_bytes()
    check(hashlib.sha256(data).hexdigest() == item["sha256"], f"{item['key']} differs from its digest")
    return data


def videos(root: Path, state: dict[str, dict]) -> dict[str, tuple[str, dict]]:
    """{video id: (name, the manifest's object)}."""
    manifests = {key.split("/")[1]: item for key, item in state.items() if key.endswith("/manifest.parquet")}
    metas = {key.split("/")[1]: item for key, item in state.items() if key.split("/")[2:3] == ["meta"]}
    return {v: (json.loads(fetch(root, metas[v]))["name"], manifests[v]) for v in manifests}


class File:
    """A Parquet file, whole and verified ("Parquet files"). `index` is the JSON in its footer."""

    def __init__(self, root: Path, item: dict, kind: str) -> None:
        self.key, self.data = item["key"], fetch(root, item)
        self.parquet = pq.ParquetFile(io.BytesIO(self.data))
        fields = self.parquet.metadata.metadata
        found = fields[b"nvp:format"].decode(), fields[b"nvp:kind"].decode()
        check(found == ("1", kind), f"{self.key}: format version and kind are {found}, not {('1', kind)}")
        self.index = json.loads(fields[b"nvp:index"])

    def group(self, part: dict) -> tuple[int, list[dict]]:
        """Position and rows of the row group at a part's byte range, verified by the part's digest."""
        start = part["offset"]
        digest = hashlib.sha256(self.data[start : start + part["size_bytes"]]).digest()
        check(digest == part["sha256"], f"{self.key} at offset {start} differs from its digest")
        for position in range(self.parquet.num_row_groups):
            if self.parquet.metadata.row_group(position).column(0).data_page_offset == start:
                return position, self.parquet.read_row_group(position).to_pylist()
        raise ValueError(f"{self.key} has no row group at offset {start}")


def tensor(row: dict) -> torch.Tensor:
    """A row of a weights file as float32 ("Encodings"), kernels in the memory layout that nvpstore uses."""
    shape, encoding = row["shape"], row["encoding"]
    types = {"int8-channel": torch.int8, "float16": torch.float16, "float32": torch.float32}
    check(encoding in types, f"tensor {row['name']}: unknown encoding {encoding!r}, a newer release wrote it")
    values = torch.frombuffer(bytearray(row["payload"]), dtype=types[encoding]).reshape(shape).float()
    if encoding == "int8-channel":
        scale = torch.frombuffer(bytearray(row["scale"]), dtype=torch.float32)
        values = values * scale.reshape(-1, *[1] * (len(shape) - 1))
    # Rounding follows the memory layout.
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def latents(rows: list[dict], shared: dict) -> torch.Tensor:
    """A segment's latents, float32 [frames, *shape]."""
    payload, shape = bytearray().join(row["latent"] for row in rows), shared["shape"]
    if shared["encoding"] == "float32":
        return torch.frombuffer(payload, dtype=torch.float32).reshape(-1, *shape)
    check(shared["encoding"] == "uint8-affine", f"latents: unknown encoding {shared['encoding']!r}")
    scale = torch.frombuffer(bytearray(base64.b64decode(shared["scale"])), dtype=torch.float32)
    low, step = scale.reshape(2, -1, *[1] * (len(shape) - 1))
    return low + torch.frombuffer(payload, dtype=torch.uint8).reshape(-1, *shape).float() * step


def decode(x: torch.Tensor, arch: dict, stages: dict[str, dict[str, torch.Tensor]]) -> torch.Tensor:
    """Latents → padded pictures float32 [frames, 3, height, width] in 0 … 1 ("The decoder")."""
    check(arch["codec"] in ("hnerv", "nerv"), f"unknown codec {arch['codec']!r}, a newer release wrote it")
    stem, head = stages["0"], stages["rgb"]
    if arch["codec"] == "nerv":
        step = math.prod(arch["strides"])
        h, w = arch["coded_height"] // step, arch["coded_width"] // step
        angles = x * (1.25 ** torch.arange(40, dtype=torch.float64) * math.pi).float()
        x = torch.cat([angles.sin(), angles.cos()], dim=1)
        x = F.gelu(F.linear(x, stem["hidden.weight"], stem["hidden.bias"]))
        x = F.gelu(F.linear(x, stem["out.weight"], stem["out.bias"])).reshape(-1, arch["widths"][0], h, w)
    else:
        x = F.gelu(F.conv2d(x, stem["conv.weight"], stem["conv.bias"]))
    for i, (kernel, stride) in enumerate(zip(arch["kernels"], arch["strides"], strict=True), start=1):
        block = stages[str(i)]
        x = F.conv2d(x, block["conv.weight"], block["conv.bias"], padding=kernel // 2)
        x = F.gelu(F.pixel_shuffle(x, stride))
    return torch.tanh(F.conv2d(x, head["conv.weight"], head["conv.bias"], padding=1)) * 0.5 + 0.5


def shown(rgb: torch.Tensor, arch: dict, height: int, width: int) -> torch.Tensor:
    """Pictures at the source's size, uint8 [frames, height, width, 3] ("From the rgb stage to pictures")."""
    content = rgb[:, :, : arch["content_height"], : arch["content_width"]]
    if content.shape[2:] != (height, width):
        content = F.interpolate(content, (height, width), mode="bicubic", align_corners=False)
    return (content.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


@torch.inference_mode()
def frames(root: Path, video: str) -> Iterator[tuple[int, Fraction, torch.Tensor]]:
    """(pts, seconds, uint8 [height, width, 3]) of every frame of a video, by id or name, in order."""
    state = objects_in_force(root)
    found = [item for key, (name, item) in videos(root, state).items() if video in (key, name)]
    check(len(found) == 1, f"{len(found)} videos are called {video!r}")
    manifest = File(root, found[0], "manifest")
    info, rows = manifest.index, manifest.parquet.read().to_pylist()
    open_file = lru_cache(maxsize=2)(lambda key, kind: File(root, state[key], kind))
    check(info["state"] != "added", f"{video} is only added: its frames are in the file {info['source_uri']}")
    for row in rows:
        arch, parts = json.loads(row["architecture"]), {part["part"]: part for part in row["parts"]}
        at = parts.pop("latents")
        position, latent_rows = (file := open_file(at["key"], "latents")).group(at)
        groups = {stage: open_file(at["key"], "weights").group(at)[1] for stage, at in parts.items()}
        stages = {stage: {r["name"]: tensor(r) for r in group} for stage, group in groups.items()}
        batches = latents(latent_rows, file.index[position]).split(BATCH)
        pictures = (shown(decode(x, arch, stages), arch, info["height"], info["width"]) for x in batches)
        for pts, picture in zip(row["pts"], (p for batch in pictures for p in batch), strict=True):
            yield pts, (pts - rows[0]["pts"][0]) * Fraction(info["time_base"]), picture


def main(root: str, video: str = "", folder: str = "") -> None:
    if not video:
        stored = videos(Path(root), objects_in_force(Path(root)))
        return print("\n".join(f"{key} {name}" for key, (name, _) in stored.items()))
    for number, (pts, seconds, picture) in enumerate(frames(Path(root), video)):
        print(number, pts, f"{float(seconds):.6f}")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            pixels = ctypes.string_at(picture.data_ptr(), picture.numel())
            head = b"P6 %d %d 255\n" % (picture.shape[1], picture.shape[0])
            (Path(folder) / f"{number:06d}.ppm").write_bytes(head + pixels)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (ValueError, KeyError, OSError) as problem:
        sys.exit(f"{sys.argv[0]}: {problem}")
