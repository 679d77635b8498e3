"""What is kept stays within its bytes: features go first, then weights, the longest unused before others."""

from __future__ import annotations

from functools import partial

from nvpstore.query.shelves import Shelf, Shelves


def filled(limit: int, *kept: tuple[str, Shelf, int]) -> tuple[Shelves, list[str]]:
    shelves, dropped = Shelves(limit), list[str]()
    for key, shelf, size in kept:
        shelves.put(key, key, shelf=shelf, size_bytes=size, dropped=partial(dropped.append, key))
    return shelves, dropped


def test_features_go_before_weights() -> None:
    weights, features = Shelf.WEIGHTS, Shelf.FEATURES
    shelves, dropped = filled(
        10, ("w", weights, 5), ("f", features, 5), ("g", features, 2), ("x", weights, 4)
    )
    assert dropped == ["f", "g"]
    assert (shelves.get("w"), shelves.get("x"), shelves.size_bytes) == ("w", "x", 9)


def test_the_longest_unused_goes_first() -> None:
    shelves, dropped = filled(10, ("a", Shelf.WEIGHTS, 5), ("b", Shelf.WEIGHTS, 5))
    assert shelves.get("a") == "a"
    shelves.put("c", "c", shelf=Shelf.WEIGHTS, size_bytes=1, dropped=lambda: None)
    assert dropped == ["b"]


def test_what_is_larger_than_all_room_is_not_kept() -> None:
    shelves, dropped = filled(10, ("a", Shelf.WEIGHTS, 11))
    assert (dropped, shelves.get("a"), shelves.size_bytes) == (["a"], None, 0)


def test_less_room_drops_at_once() -> None:
    shelves, dropped = filled(10, ("a", Shelf.WEIGHTS, 5), ("b", Shelf.WEIGHTS, 5))
    shelves.limit(5)
    assert dropped == ["a"]
    shelves.clear(*Shelf)
    assert shelves.size_bytes == 0
