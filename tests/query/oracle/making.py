"""Random pieces of queries over the oracle's world: tables with options, conditions, columns. Seeded."""

# A query reads best as one line.

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

from tests.query.archive_fixture import LABELS

T = TypeVar("T")

OPTIONS = {
    "labels": [
        *("", "", "", "every := 0.5", "every := 0.3", "every := 1", "stride := 5", "stride := 7", "top := 2"),
        *("top := 8", "top := 3, every := 0.25", "min_fidelity := 0.5", "min_fidelity := 0.5, stride := 3"),
        *("route := 'pixel', on_error := 'skip'", "route := 'source', on_error := 'skip', every := 0.5"),
        *("stabilize := true", "stabilize := true, every := 0.3", "stride := 3, stabilize := true, top := 2"),
        *("stabilize := true", "stabilize := false"),
    ],
    "embed": ["", "", "every := 0.4", "stride := 4", "on_error := 'skip'", "stabilize := true, every := 0.4"],
    "objects": ["", "", "", "every := 0.5", "stride := 2", "stride := 6", "stabilize := true"],
    "frames": ["", "every := 0.2", "stride := 10", "format := 'jpg'", "stabilize := true, stride := 5"],
    "actions": [
        *(
            "",
            "",
            "",
            "",
            "top := 2",
            "top := 8",
            "min_fidelity := 0.5",
            "route := 'pixel', on_error := 'skip'",
        ),
        *("route := 'source', on_error := 'skip'", "on_error := 'skip', top := 1", "stabilize := true"),
    ],
}
# Thresholds lie well away from every value: ts are multiples of 0.04, 1/30 and 1001/30000, scores are 1/n.
SECONDS = (0.105, 0.215, 0.305, 0.515, 0.745, 0.905, 1.105, 1.505, 2.105, 3.015)
SCORES = (0.12, 0.15, 0.18, 0.22, 0.3, 0.4)
CAMERAS = ("gate", "yard")


class Maker:
    """One seeded source of choices."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def one(self, choices: Sequence[T]) -> T:
        return self.random.choice(choices)

    def number(self, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def table(self, task: str, *, plain: bool = False) -> str:
        """A task table with random options."""
        return f"@@{task}|{'' if plain else self.one(OPTIONS[task])}@@"

    def task(self) -> str:
        return self.one(("labels", "labels", "objects", "embed", "actions"))

    def labelled(self) -> str:
        """A task whose rows have labels and scores."""
        return self.one(("labels", "labels", "objects", "objects", "actions"))

    def where(self, alias: str, task: str, *, parts: int = 2) -> str:
        """One to `parts` conditions on a task table, joined by AND."""
        return " AND ".join(self.condition(alias, task) for _ in range(self.number(1, parts)))

    def condition(self, alias: str, task: str) -> str:
        choice = self.random.random()
        if choice < 0.15:
            return f"({self.atom(alias, task)} OR {self.atom(alias, task)})"
        if choice < 0.22:
            return f"NOT ({self.atom(alias, task)})"
        return self.atom(alias, task)

    def atom(self, alias: str, task: str) -> str:
        kinds = [self._time, self._frame, self._place]
        by_task = {
            **{"labels": self._label, "objects": self._object, "embed": self._embedding},
            "actions": self._action,
        }
        if task in by_task:
            kinds += [by_task[task]] * 2
        return self.one(kinds)(alias)

    def _time(self, a: str) -> str:
        low, high = sorted(self.random.sample(SECONDS, 2))
        return self.one(
            [
                f"{a}.ts < {high}",
                f"{a}.ts >= {low}",
                f"{a}.ts BETWEEN {low} AND {high}",
                f"{high} > {a}.ts",
                f"{a}.wall_ts > TIMESTAMPTZ '2026-03-01 12:00:0{self.number(0, 9)}.005+00'",
                f"{a}.wall_ts IS NULL",
                f"round({a}.ts * 10) % 3 = {self.number(0, 2)}",
            ]
        )

    def _frame(self, a: str) -> str:
        n = self.number(0, 60)
        values = ", ".join(str(self.number(0, 99)) for _ in range(self.number(1, 6)))
        return self.one(
            [
                f"{a}.frame IN ({values})",
                f"{a}.frame % {self.number(2, 6)} = 1",
                f"{a}.frame BETWEEN {n} AND {n + self.number(0, 40)}",
                f"{a}.frame < {n + 5}",
                f"{a}.segment = {self.number(0, 3)}",
                f"{a}.segment >= {self.number(1, 2)}",
                f"{a}.frame <> {n}",
            ]
        )

    def _place(self, a: str) -> str:
        return self.one(
            [
                f"{a}.video_id = '{self.one('abc') * 32}'",
                f"{a}.video_id < 'c'",
                f"{a}.video_id IN (SELECT video_id FROM videos WHERE tags['camera'] = '{self.one(CAMERAS)}')",
                f"{a}.video_id IN ('{'a' * 32}', '{'c' * 32}')",
                f"{a}.route = '{self.one(('adapter', 'pixel', 'source'))}'",
                f"{a}.fidelity > 0.9",
                f"{a}.video_id LIKE '{self.one('abc')}%'",
            ]
        )

    def _label(self, a: str) -> str:
        return self.one(
            [
                f"{a}.rank = {self.number(1, 3)}",
                f"{a}.rank <= {self.number(1, 3)}",
                f"{a}.label = '{self.one(LABELS)}'",
                f"{a}.label IN ('{self.one(LABELS)}', '{self.one(LABELS)}')",
                f"{a}.score > {self.one(SCORES)}",
                f"{a}.label LIKE 'b%'",
            ]
        )

    def _action(self, a: str) -> str:
        return self.one(
            [
                self._label(a),
                f"{a}.end_ts < {self.one(SECONDS[4:])}",
                f"{a}.end_ts - {a}.ts > 0.305",
                f"{a}.end_ts BETWEEN {SECONDS[2]} AND {self.one(SECONDS[5:])}",
            ]
        )

    def _object(self, a: str) -> str:
        return self.one(
            [
                f"{a}.object = {self.number(0, 1)}",
                f"{a}.label = '{self.one(LABELS)}'",
                f"{a}.box.x1 > 1.5",
                f"{a}.score BETWEEN 0.4 AND 0.6",
            ]
        )

    def _embedding(self, a: str) -> str:
        return self.one(
            [
                f"{a}.embedding[1] > {self.number(5, 50)}.5",
                f"len({a}.embedding) = 2",
                f"{a}.embedding[2] < 4.5",
            ]
        )

    def key(self, a: str, task: str) -> str:
        """Columns that name a row of a task table."""
        ranked = f", {a}.rank"
        inner = {"labels": ranked, "actions": ranked, "objects": f", {a}.object"}.get(task, "")
        return f"{a}.video_id, {a}.frame{inner}"

    def columns(self, a: str, task: str) -> str:
        own = {
            "labels": (f"{a}.label", f"{a}.score", f"{a}.rank", f"{a}.label || '!'", f"{a}.score * 2"),
            "objects": (f"{a}.label", f"{a}.box", f"{a}.box.x1 - {a}.box.x0", f"{a}.object"),
            "embed": (f"{a}.embedding", f"{a}.embedding[1]", f"list_sum({a}.embedding)"),
            "frames": (f"{a}.width", f"{a}.height", f"{a}.image"),
            "actions": (f"{a}.label", f"{a}.score", f"{a}.end_ts", f"{a}.end_ts - {a}.ts", f"{a}.rank"),
        }[task]
        common = (f"{a}.ts", f"{a}.segment", f"{a}.route", f"{a}.fidelity", f"{a}.wall_ts", f"{a}.frame + 1")
        chosen = [self.one(own), *self.random.sample(common, self.number(0, 2))]
        return ", ".join([f"{a}.video_id", f"{a}.frame", *chosen])

    def aggregates(self, a: str, task: str) -> str:
        choices = [
            *("count(*)", f"min({a}.ts)", f"max({a}.frame)", f"sum({a}.ts)", f"count(DISTINCT {a}.frame)"),
            *(f"avg({a}.frame)", f"count(*) FILTER (WHERE {a}.frame % 2 = 0)", f"stddev_pop({a}.ts)"),
            f"median({a}.frame)",
        ]
        if task == "actions":
            choices += [f"max({a}.end_ts)", f"sum({a}.end_ts - {a}.ts)"]
        if task in ("labels", "actions"):
            choices += [
                *(f"sum({a}.score)", f"max({a}.label)", f"count(*) FILTER ({a}.score > 0.3)"),
                *(f"arg_max({a}.label, ({a}.ts, {a}.video_id, {a}.rank))", f"bool_or({a}.rank = 1)"),
                f"list({a}.label ORDER BY {self.key(a, task)})",
                f"string_agg({a}.label, ',' ORDER BY {self.key(a, task)})",
            ]
        chosen = self.random.sample(choices, self.number(1, 3))
        return ", ".join(f"{item} AS n{n}" for n, item in enumerate(chosen))

    def grouping(self, a: str, task: str) -> str:
        ranked = ["label", "rank"]
        labelled = {"labels": ranked, "actions": ranked, "objects": ["label", "object"]}
        own = labelled.get(task, ["segment"])
        choices = [f"{a}.{name}" for name in (*own, "video_id", "segment", "route")]
        return ", ".join(dict.fromkeys(self.random.sample(choices, self.number(1, 2))))
