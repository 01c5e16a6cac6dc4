"""Small charts as SVG whose colours are the page's own, so that they follow light and dark.

Bars and intervals, whose labels are words, are HTML of the templates; here are the charts with two numeric axes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

WIDTH, HEIGHT = 460.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 12.0, 12.0, 46.0


@dataclass(frozen=True)
class Series:
    """A line of a chart.

    Attributes:
        label: What the legend calls it.
        points: x and y of each point, in the axes' units.
        style: The CSS class that gives it its colour: series-1 to series-4.
        note: A number worth telling in the legend.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: str
    note: str = ""


@dataclass(frozen=True)
class Axes:
    """The frame of a chart: what its axes mean and how far they go."""

    x_label: str
    y_label: str
    y_max: float = 1.0
    y_digits: int = 1

    def x(self, value: float) -> float:
        """Returns where a value of 0 to 1 lies, in the drawing's units."""
        return LEFT + value * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Returns the height at which a value lies."""
        return HEIGHT - BOTTOM - value / self.y_max * (HEIGHT - TOP - BOTTOM)


def line_chart(series: Sequence[Series], axes: Axes, description: str) -> "Markup":
    """Draws lines over 0 to 1; the first has its area tinted."""
    drawn = []
    for index, line in enumerate(series):
        path = "L".join(f"{axes.x(x):.1f} {axes.y(y):.1f}" for x, y in line.points)
        if index == 0 and line.points:
            first, last = axes.x(line.points[0][0]), axes.x(line.points[-1][0])
            floor = f"{axes.y(0):.1f}"
            drawn.append(f'<path class="area {line.style}" d="M{first:.1f} {floor}L{path}L{last:.1f} {floor}Z"/>')
        drawn.append(f'<path class="line {line.style}" d="M{path}"/>' if line.points else "")
    return _svg(axes, drawn, description)


def histogram(counts: Sequence[int], axes: Axes, description: str) -> "Markup":
    """Draws counts of equal bins over 0 to 1 as columns."""
    bin_width = 1 / len(counts)
    drawn = []
    for index, height in enumerate(counts):
        low, high = index * bin_width, (index + 1) * bin_width
        box = f'x="{axes.x(low) + 1:.1f}" y="{axes.y(height):.1f}" width="{axes.x(high) - axes.x(low) - 2:.1f}"'
        title = f"<title>{low:.2f} to {high:.2f}: {height}</title>"
        drawn.append(
            f'<rect class="column series-1" rx="2" {box} height="{axes.y(0) - axes.y(height):.1f}">{title}</rect>'
        )
    return _svg(axes, drawn, description)


def reliability_chart(bins: Sequence[tuple[float, float, int]], axes: Axes, description: str) -> "Markup":
    """Draws how often detections of a score are right: on the diagonal, a score is a probability.

    Args:
        bins: Mean score, fraction right and number of detections of each bin that has any.
        axes: The frame.
        description: What the picture says, for those who cannot see it.
    """
    largest = max((n for *_, n in bins), default=1)
    drawn = [_line(axes.x(0), axes.y(0), axes.x(1), axes.y(1), "diagonal")]
    for score, right, _ in bins:
        drawn.append(_line(axes.x(score), axes.y(score), axes.x(score), axes.y(right), "gap"))
    points = "L".join(f"{axes.x(score):.1f} {axes.y(right):.1f}" for score, right, _ in bins)
    if points:
        drawn.append(f'<path class="line series-1 thin" d="M{points}"/>')
    for score, right, n in bins:
        radius = 3.5 + 6.5 * (n / largest) ** 0.5
        title = f"<title>score {score:.2f}: {right:.0%} of {n} are right</title>"
        at = f'cx="{axes.x(score):.1f}" cy="{axes.y(right):.1f}"'
        drawn.append(f'<circle class="dot series-1" {at} r="{radius:.1f}">{title}</circle>')
    return _svg(axes, drawn, description)


def _svg(axes: Axes, drawn: Sequence[str], description: str) -> "Markup":
    from markupsafe import Markup, escape

    frame = []
    for step in range(6):
        share = step / 5
        x, y, value = axes.x(share), axes.y(share * axes.y_max), share * axes.y_max
        frame.append(_line(axes.x(0), y, axes.x(1), y, "grid"))
        frame.append(f'<text x="{LEFT - 7:.1f}" y="{y + 4.5:.1f}" text-anchor="end">{value:.{axes.y_digits}f}</text>')
        frame.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18:.1f}" text-anchor="middle">{share:.1f}</text>')
    middle = (TOP + HEIGHT - BOTTOM) / 2
    frame.append(
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.1f}" y="{HEIGHT - 6:.1f}" text-anchor="middle">'
        f"{escape(axes.x_label)}</text>"
    )
    frame.append(
        f'<text class="axis" transform="translate(12 {middle:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(axes.y_label)}</text>"
    )
    # Everything in here is numbers, or escaped above.
    inside = "".join((*frame, *drawn))
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{escape(description)}">'
        f"{inside}</svg>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
