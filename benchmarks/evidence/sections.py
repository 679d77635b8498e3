"""The sections of the report: which results, how they are shown, and what they do not say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.evidence.answers import accuracy_tables, nets_table
from benchmarks.evidence.joint import joint_table
from benchmarks.evidence.routing import routing_tables
from benchmarks.evidence.shown import (
    batch_headline,
    batch_table,
    container_table,
    demo_table,
    economics_table,
    latency_headline,
    latency_table,
    models_table,
    planning_headline,
    planning_table,
    query_table,
    rate_tables,
    scale_table,
    sharing_headline,
    sharing_table,
    stability_tables,
)
from benchmarks.evidence.tables import Table, generic
from benchmarks.evidence.upscaling import upscale_ablations_table, upscale_tables

Found = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One question and its result. `headline` are the figures that a subset is compared by."""

    name: str
    title: str
    intro: str
    command: str
    missing: str
    tables: Callable[[Found], list[Table]] = generic
    headline: Callable[[Found], dict[str, str]] | None = None


SECTIONS = (
    Section(
        name="demo",
        title="Two videos stored and asked",
        intro="Fitted on this CPU, then asked for the label of every frame, beside two dumb predictors.",
        command="make demo",
        missing="Two short clips of small size, one backbone; ImageNet, COCO and Kinetics are not at hand.",
        tables=demo_table,
    ),
    Section(
        name="accuracy",
        title="How right answers are",
        intro="Clips of the labelled world that no net has seen, at one rate: answers against the truth, on "
        "frames that neither task terms nor adapters saw (ii), and of a task that came after the fit (iii). "
        "Differences from source frames with the bootstrap's 95 % over clips.",
        command="python -m benchmarks.accuracy FOLDER --epochs 40",
        missing="Four clips, one rate, 40 epochs, reduced nets: the whole set (64 clips, four rates, NeRV) "
        "waits for a GPU, and four clips' intervals only hint. Joint fits learn from two thirds of the "
        "frames, adapters behind a fit alone from half of them or a tenth. Codecs have the network's bytes, "
        "without the adapters'; AV1 has fewer, as its steps are coarse. Which route answers is chosen on the "
        "frames that are reported.",
        tables=accuracy_tables,
    ),
    Section(
        name="nets",
        title="The nets that it is asked by",
        intro="Reduced nets of four families, trained on the labelled world's own footage.",
        command="python -m benchmarks.nets FOLDER",
        missing="Trained for minutes on a CPU, that of classes no longer than until some sources are wrong. "
        "Captions come from one frame, in which no action can be told.",
        tables=nets_table,
    ),
    Section(
        name="routing",
        title="Which stage for which cut",
        intro="An adapter for every stage × cut pair of the longest segment, against the three that ingest "
        "takes: ranked by CKA × saving, decided by the answers behind the ridge optimum.",
        command="python -m benchmarks.routing --task labels --task look --task wide",
        missing="Backbones of one family, two clips, a segment each. Chance flatters the best of many: a "
        "frame of bikes is four points of its fidelity. Measured when adapters learned at a quarter of "
        "today's rate.",
        tables=routing_tables,
    ),
    Section(
        name="joint",
        title="What a task in a fit costs the picture",
        intro="The same network for as many steps, fitted for reconstruction alone, with adapters trained "
        "behind it on two thirds of the frames, and jointly with labels: three times, another third unseen "
        "each time.",
        command="python -m benchmarks.joint",
        missing="One task, two clips.",
        tables=joint_table,
    ),
    Section(
        name="latency",
        title="An answer a frame, against decoding",
        intro="The pipeline paper's latency table in our setting: adapter route against decode and whole.",
        command="python -m benchmarks.latency",
        missing="No GPU; not the paper's backbones; TorchCodec and NVDEC do not load here.",
        tables=latency_table,
        headline=latency_headline,
    ),
    Section(
        name="models",
        title="Full-size models, cut",
        intro="Operations of the paper's backbones and others, whole and from a cut.",
        command="python -m benchmarks.models",
        missing="Weights are random but for two: cost was measured, quality was not.",
        tables=models_table,
    ),
    Section(
        name="query",
        title="Questions asked again, and together",
        intro="Queries against decoding for each, decoding what is needed, and caching rows alone.",
        command="python -m benchmarks.query",
        missing="One clip, one machine; the page cache is warm.",
        tables=query_table,
    ),
    Section(
        name="sharing",
        title="Queries that run at once",
        intro="Shallow decodes are shared across tasks and predicates.",
        command="python -m benchmarks.sharing",
        missing="Two segments, two threads.",
        tables=sharing_table,
        headline=sharing_headline,
    ),
    Section(
        name="planning",
        title="Planning",
        intro="Plans over simulated indexes of one to ten million segments.",
        command="python -m benchmarks.planning",
        missing="72 million segments were not planned: their index is about 32 GB.",
        tables=planning_table,
        headline=planning_headline,
    ),
    Section(
        name="resting",
        title="A camera that rests",
        intro="Frames that show the same, learned and decoded once, against every frame for itself.",
        command="python -m benchmarks.resting",
        missing="One made clip: a photograph with a sensor's noise, and something that passes.",
    ),
    Section(
        name="rate_distortion",
        title="Rate and distortion",
        intro="HNeRV fits for reconstruction alone, as they are stored, beside FFmpeg's encoders on the same "
        "frames. The broken line are kernels that learned to be rounded within a budget of bits.",
        command="python -m benchmarks.rate_distortion",
        missing="One clip at 160×320 and few epochs: what a CPU can fit. Published sizes wait for a GPU.",
        tables=rate_tables,
    ),
    Section(
        name="stability",
        title="Steady answers and pictures",
        intro="The stabilization paper's tables in our setting: PSNR (dB) and instability (the truth's own "
        "is in the table of figures); pictures from top to bottom, or left to right: clean, as seen, the "
        "network alone, stabilized.",
        command="python -m benchmarks.stability",
        missing="Depth, segmentation, the paper's scale, a GPU.",
        tables=stability_tables,
    ),
    Section(
        name="upscale",
        title="Larger pictures",
        intro="The shipped upscaler beside others in the middle of each scene of two clips that no training "
        "has seen; E*warp is 10³ · mean squared. Strips show a part of one frame by each method, profiles "
        "one row of pixels over time.",
        command="python -m benchmarks.upscale --real-esrgan WHEEL",
        missing="LPIPS (its trunk's weights are not at hand), a GPU, other users' footage.",
        tables=upscale_tables,
    ),
    Section(
        name="upscale-ablations",
        title="What the upscaler's parts are good for",
        intro="Short trainings of equal length on one footage, judged on two clips that none has seen, by "
        "two and by four: means of PSNR (dB), of the perceptual distance as a share of bicubic's, of E*warp "
        "(10⁻³); the sharp clip's Laplacian energy is 1. Rows are to be compared within their group.",
        command="python -m benchmarks.upscale_ablations",
        missing="Trainings of minutes: differences between parts that need long ones do not show.",
        tables=upscale_ablations_table,
    ),
    Section(
        name="batch",
        title="Batches, workers, training",
        intro="One statement over everything; an epoch over features against decoding.",
        command="python -m benchmarks.batch",
        missing="No cluster, no GPU: Ray was tested for equal rows alone. TorchCodec does not load here.",
        tables=batch_table,
        headline=batch_headline,
    ),
    Section(
        name="economics",
        title="When fitting pays",
        intro="A model of the figures above and of prices.",
        command="python -m benchmarks.economics",
        missing="GPU-hours are published ones; prices are assumed.",
        tables=economics_table,
    ),
    Section(
        name="scale",
        title="Many videos",
        intro="What opening an archive costs, synthetic videos with real manifests.",
        command="python -m benchmarks.scale",
        missing="S3 is a SeaweedFS server on the same machine.",
        tables=scale_table,
    ),
    Section(
        name="container",
        title="The container's own bytes",
        intro="What Parquet, footers and manifests add to a segment.",
        command="python -m benchmarks.container",
        missing="",
        tables=container_table,
    ),
)
