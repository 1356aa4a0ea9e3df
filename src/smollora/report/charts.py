"""Geometry of the loss charts: logged points in, SVG paths and ticks out.

Coordinates are those of the chart's view box (`WIDTH` by `HEIGHT`), y downwards. A point without a
finite loss breaks the line. Long curves are thinned to one point in every n; how many is said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from smollora.report.contents import CurvePoint
from smollora.types import PARTS

WIDTH, HEIGHT = 720, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 14, 40
MOST_POINTS = 600

Points = list[tuple[float, float | None]]
"""Steps with their loss; None breaks the line."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A gridline with its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class LossChart:
    """The loss over the training steps."""

    logged: str
    """Path of the losses as logged."""
    mean: str
    """Path of their trailing mean."""
    window: int
    """Points in that mean."""
    validation: str
    validation_marks: tuple[tuple[float, float], ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    shown: int
    total: int
    """Logged points, of which `shown` are drawn."""
    not_finite: int
    """Logged points without a loss that can be drawn."""
    says: str
    """The chart as a sentence, for those who cannot see it."""


@dataclass(frozen=True, slots=True)
class PartLine:
    """The loss on one part of the labelled tokens: its ends, and a small line between."""

    part: str
    first: float
    last: float
    path: str
    """In a view box of 100 by 24."""


@dataclass(frozen=True, slots=True)
class _Scale:
    """A linear map from values to coordinates."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        span = self.high - self.low
        share = (value - self.low) / span if span else 0.5
        return round(self.start + share * (self.end - self.start), 1)


def loss_chart(curve: Sequence[CurvePoint]) -> LossChart | None:
    """The chart of a training curve; None where no loss was logged."""
    points = sorted(curve, key=lambda point: point.step)
    # A line that holds only a validation loss is no gap in the training loss.
    trained = [p for p in points if p.loss is not None or p.validation_loss is None]
    logged: Points = [(p.step, p.loss) for p in trained]
    validated: Points = [
        (p.step, p.validation_loss) for p in points if p.validation_loss is not None
    ]
    values = [value for _, value in logged + validated if value is not None]
    if not any(value is not None for _, value in logged):
        return None
    window = max(1, len(logged) // 20)
    y_step = _nice_step(max(max(values), 1e-9) / 4)
    top = y_step * math.ceil(max(max(values), 1e-9) / y_step)
    x = _Scale(points[0].step, points[-1].step, LEFT, WIDTH - RIGHT)
    y = _Scale(0.0, top, HEIGHT - BOTTOM, TOP)
    thinned = _thinned(logged)
    finite = [(step, value) for step, value in logged if value is not None]
    (first_step, first), (last_step, last) = finite[0], finite[-1]
    return LossChart(
        logged=_path(thinned, x, y),
        mean=_path(_thinned(_trailing_mean(logged, window)), x, y),
        window=window,
        validation=_path(_thinned(validated), x, y),
        validation_marks=tuple((x(s), y(v)) for s, v in _thinned(validated) if v is not None),
        x_ticks=tuple(
            Tick(x(step), f"{step:,}") for step in _steps(points[0].step, points[-1].step)
        ),
        y_ticks=tuple(
            Tick(y(loss), f"{loss:.3g}") for loss in _multiples(y_step, round(top / y_step))
        ),
        shown=len(thinned),
        total=len(logged),
        not_finite=len(logged) - len(finite),
        says=f"Loss {first:.3f} at step {first_step:g}, {last:.3f} at step {last_step:g}.",
    )


def part_lines(curve: Sequence[CurvePoint]) -> list[PartLine]:
    """A line for each part whose loss was logged, all on one scale."""
    points = sorted(curve, key=lambda point: point.step)
    seen = {part for point in points for part in point.loss_by_part}
    if not seen:
        return []
    highest = max(max(point.loss_by_part.values(), default=0.0) for point in points)
    x, y = _Scale(points[0].step, points[-1].step, 1, 99), _Scale(0.0, highest or 1.0, 22, 2)
    lines = []
    for part in [part for part in PARTS if part in seen] + sorted(seen - set(PARTS)):
        found: Points = [(p.step, p.loss_by_part[part]) for p in points if part in p.loss_by_part]
        losses = [value for _, value in found if value is not None]
        lines.append(PartLine(part, losses[0], losses[-1], _path(_thinned(found), x, y)))
    return lines


def _thinned(points: Points) -> Points:
    every = max(1, math.ceil(len(points) / MOST_POINTS))
    last = len(points) - 1
    return [point for index, point in enumerate(points) if index % every == 0 or index == last]


def _trailing_mean(points: Points, window: int) -> Points:
    means: Points = []
    for index, (step, value) in enumerate(points):
        window_of_points = points[max(0, index + 1 - window) : index + 1]
        recent = [each for _, each in window_of_points if each is not None]
        means.append((step, None if value is None else sum(recent) / len(recent)))
    return means


def _path(points: Points, x: _Scale, y: _Scale) -> str:
    """An SVG path, lifted off wherever a value is missing."""
    commands, pen_down = [], False
    for step, value in points:
        if value is not None:
            commands.append(f"{'L' if pen_down else 'M'}{x(step):g} {y(value):g}")
        pen_down = value is not None
    return "".join(commands)


def _nice_step(rough: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    return next(step for step in steps if step >= rough * (1 - 1e-9))


def _multiples(step: float, last: int) -> list[float]:
    return [step * number for number in range(last + 1)]


def _steps(first: int, last: int) -> list[int]:
    """Whole, round steps between the first and the last one."""
    every = max(1, math.ceil(_nice_step(max(1, last - first) / 6)))
    return list(range(math.ceil(first / every) * every, last + 1, every))
