"""Average linkage over the pairs that are near: what belongs together where each is near to some of the others only.

Two clusters are as far apart as their members are in the mean over all pairs. The nearest two are joined, again and
again, and a pair is as far apart as the clusters were that it was joined with. Of a cluster that is drawn out like a
chain, the ends so come together over what lies between them.

Pairs that are not listed count as FAR apart. So only sums over the listed ones are kept, N of a few dozen each instead
of N^2.
"""

from __future__ import annotations

import heapq

import numpy as np

from fogline.record.store import Table

FAR = 1.5


def joined(count: int, near: Table, within: float) -> Table:
    """All pairs of what belongs together, the nearest first.

    Args:
        count: how many rows there are.
        near: ``first``, ``second`` and ``distance`` of pairs of rows, each pair once.
        within: clusters that are further apart are not joined.

    Returns:
        ``first`` < ``second``, and ``distance``, that of the clusters when they were joined: it is never smaller than
        that of a pair that was joined before.

    >>> near = Table({"first": np.array([0, 1]), "second": np.array([1, 2]), "distance": np.array([0.2, 0.3])})
    >>> found = joined(3, near, within=1.0)
    >>> found["distance"].tolist()  # then the mean of 0.3 and FAR
    [0.2, 0.9, 0.9]
    """
    members = {row: [row] for row in range(count)}
    closeness = _closeness(count, near)
    heap = [(FAR - short, one, other) for one, row in closeness.items() for other, short in row.items() if one < other]
    heapq.heapify(heap)
    merges: list[tuple[list[int], list[int], float]] = []
    while heap and heap[0][0] <= within:
        height, one, other = heapq.heappop(heap)
        if one not in members or other not in members:
            continue
        merges.append((members[one], members[other], height))
        own = count + len(merges)
        members[own] = members.pop(one) + members.pop(other)
        closeness[own] = _of_both(closeness, one, other)
        for third, short in closeness[own].items():
            closeness[third][own] = short
            heapq.heappush(heap, (FAR - short / (len(members[own]) * len(members[third])), third, own))
    return _pairs(merges)


def _closeness(count: int, near: Table) -> dict[int, dict[int, float]]:
    """Of each row, by how much its pairs are nearer than FAR."""
    found: dict[int, dict[int, float]] = {row: {} for row in range(count)}
    for one, other, far in zip(*(near[name].tolist() for name in ("first", "second", "distance")), strict=True):
        if far < FAR:
            found[one][other] = found[other][one] = FAR - far
    return found


def _of_both(closeness: dict[int, dict[int, float]], one: int, other: int) -> dict[int, float]:
    """The sums of two clusters that become one; they themselves are forgotten."""
    found, rest = closeness.pop(one), closeness.pop(other)
    found.pop(other), rest.pop(one)
    for third, short in rest.items():
        found[third] = found.get(third, 0.0) + short
        closeness[third].pop(other)
    for third in found:
        closeness[third].pop(one, None)
    return found


def _pairs(merges: list[tuple[list[int], list[int], float]]) -> Table:
    one = [np.repeat(left, len(right)) for left, right, _ in merges]
    other = [np.tile(right, len(left)) for left, right, _ in merges]
    first, second = (np.concatenate([np.empty(0, dtype=np.int64), *parts]) for parts in (one, other))
    sizes = np.array([len(left) * len(right) for left, right, _ in merges], dtype=np.int64)
    distance = np.repeat(np.round([height for _, _, height in merges], 6), sizes)
    first, second = np.minimum(first, second), np.maximum(first, second)
    order = np.lexsort((second, first, distance))
    return Table({"first": first[order], "second": second[order], "distance": distance[order]})
