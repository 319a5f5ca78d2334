"""The memory of a step over time as a picture: SVG, or a page of HTML around it; one file, no script, no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from rigfit.errors import UsageError
from rigfit.planning.memory.profile import MemoryProfile, Point
from rigfit.planning.plan import Plan, StagePlan
from rigfit.planning.show.table import limit_bytes
from rigfit.planning.show.timeline import (
    FARTHEST_LIMIT,
    bytes_at_peak,
    kind_bytes,
    kinds_drawn,
    points_of_step,
    stretches,
    total_bytes,
)
from rigfit.planning.show.why import describe_peak, parts_of_device
from rigfit.planning.trace import Kind
from rigfit.planning.words import describe_layout, rank_word
from rigfit.units import GIB, MIB, format_bytes

_WIDTH, _HEIGHT = 1040, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 84, 282, 64, 52
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

# Colours that stay apart for colour-blind readers (Paul Tol's "muted" scheme, sronpersonalpages.nl/~pault), the dark
# ones lightened for dark pages.
_LIGHT = {
    Kind.WEIGHT: "#332288",
    Kind.BUFFER: "#7f7f7f",
    Kind.AVERAGE: "#882255",
    Kind.OPTIMIZER: "#117733",
    Kind.GRADIENT: "#44aa99",
    Kind.BUCKET: "#999933",
    Kind.INPUT: "#ddcc77",
    Kind.ACTIVATION: "#88ccee",
    Kind.TEMPORARY: "#cc6677",
    Kind.WORKSPACE: "#aa4499",
}
_DARK = {Kind.WEIGHT: "#7d70d8", Kind.AVERAGE: "#c2578f", Kind.OPTIMIZER: "#3fa866", Kind.ACTIVATION: "#5fa8cc"}


def draw_svg(plan: Plan) -> str:
    """Return the picture of every stage, one below the other, as one SVG.

    Raises:
        UsageError: Nobody read a step of this plan on paper.
    """
    panels = _panels(plan)
    height = _HEIGHT * len(panels)
    body = "".join(
        f'<g transform="translate(0,{number * _HEIGHT})">{_panel(panel, _subject(plan))}</g>'
        for number, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        f'role="img"><title>{escape(_title(plan))}</title><style>{_style()}</style>'
        f'<rect class="page" width="{_WIDTH}" height="{height}"/>{body}</svg>\n'
    )


def draw_page(plan: Plan) -> str:
    """Return a page with the picture, the sentence about the peak, and the table of what a device holds.

    Raises:
        UsageError: Nobody read a step of this plan on paper.
    """
    picture = draw_svg(plan)
    stages = "".join(_stage_text(plan, panel) for panel in _panels(plan))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">'
        f"<title>{escape(_title(plan))}</title><style>{_PAGE_STYLE}</style></head>"
        f"<body><h1>{escape(_title(plan))}</h1>{picture}{stages}</body></html>\n"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Panel:
    """What one stage's picture shows: `name` is empty where there is one stage only."""

    name: str
    stage: StagePlan
    memory: MemoryProfile
    limit: int
    word: str

    @property
    def points(self) -> tuple[Point, ...]:
        return points_of_step(self.memory)

    @property
    def upper(self) -> int:
        return self.stage.predicted_upper_bytes or 0

    @property
    def top(self) -> int:
        """Bytes at the upper edge: a limit far above is drawn there all the same, and said to be."""
        highest = max(self.upper, *map(total_bytes, self.points))
        return round(max(highest, self.limit) * 1.04) if self.is_to_scale else round(highest * 1.25)

    @property
    def is_to_scale(self) -> bool:
        highest = max(self.upper, *map(total_bytes, self.points))
        return self.limit <= highest * FARTHEST_LIMIT

    def x(self, index: float) -> float:
        return _LEFT + _PLOT_WIDTH * index / max(1, len(self.points) - 1)

    def y(self, num_bytes: float) -> float:
        return _TOP + _PLOT_HEIGHT * (1 - num_bytes / self.top)


def _panels(plan: Plan) -> list[_Panel]:
    panels = [
        _Panel(
            name=f"stage {number} of {len(plan.stages)}" if len(plan.stages) > 1 else "",
            stage=stage,
            memory=stage.memory,
            limit=limit_bytes(plan.rig, stage),
            word=rank_word(plan.rig.kind),
        )
        for number, stage in enumerate(plan.stages, 1)
        if stage.memory is not None and stage.memory.timeline
    ]
    if not panels:
        raise UsageError(
            "There is no timeline to draw: the step was measured or pinned, not read on paper.",
            "Plan for a card, as in --rig titan-rtx: its step is read on paper.",
        )
    return panels


def _title(plan: Plan) -> str:
    return f"Memory of one training step: {_subject(plan)}"


def _subject(plan: Plan) -> str:
    return f"{plan.recipe.rsplit('/', 1)[-1]} on {plan.rig.describe()}"


def _panel(panel: _Panel, subject: str) -> str:
    return "".join(
        (*_heading(panel, subject), *_grid(panel), *_areas(panel), *_phases(panel), *_lines(panel), *_legend(panel))
    )


def _heading(panel: _Panel, subject: str) -> Iterator[str]:
    """Yield what the picture is of: it may be looked at away from its page."""
    stage = panel.stage
    yield _text(_LEFT, 24, ", ".join([subject, *([panel.name] if panel.name else [])]), "head")
    batch = f"micro-batch {panel.memory.micro_batch_size} of an effective batch of {stage.layout.effective_batch_size}"
    text = f"live tensors of one {panel.word} over the second step, {batch}, {stage.precision}, estimated on paper;"
    yield _text(_LEFT, 42, f"{text} events in order, not seconds", "note")


def _grid(panel: _Panel) -> Iterator[str]:
    for num_bytes, label in _ticks(panel.top):
        y = panel.y(num_bytes)
        yield f'<line class="grid" x1="{_LEFT}" x2="{_LEFT + _PLOT_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(_LEFT - 8, y + 4, label, "tick end")


def _areas(panel: _Panel) -> Iterator[str]:
    timeline = panel.points
    below = [0] * len(timeline)
    for kind in kinds_drawn(panel.memory):
        above = [base + kind_bytes(point, kind) for base, point in zip(below, timeline, strict=True)]
        yield (
            f'<polygon class="k{_number(kind)}" points="{_path(panel, above)} {_path(panel, below, is_back=True)}">'
            f"<title>{escape(kind)}</title></polygon>"
        )
        below = above


def _path(panel: _Panel, heights: Sequence[int], *, is_back: bool = False) -> str:
    places = [f"{panel.x(index):.1f},{panel.y(height):.1f}" for index, height in enumerate(heights)]
    return " ".join(reversed(places) if is_back else places)


def _phases(panel: _Panel) -> Iterator[str]:
    bottom = _TOP + _PLOT_HEIGHT
    found = stretches(panel.points)
    for number, stretch in enumerate(found):
        left = panel.x(max(0.0, stretch.first - 0.5))
        right = panel.x(min(len(panel.points) - 1.0, stretch.last + 0.5))
        if number:
            yield f'<line class="phase" x1="{left:.1f}" x2="{left:.1f}" y1="{_TOP}" y2="{bottom + 24}"/>'
        shade = "even" if number % 2 else "odd"
        yield f'<rect class="{shade}" x="{left:.1f}" y="{bottom + 4}" width="{right - left:.1f}" height="20"/>'
        if right - left > 7 * len(stretch.phase) + 4:
            yield _text((left + right) / 2, bottom + 18, stretch.phase, "tick middle")
        else:
            # Too narrow for its name: below the strip, so that neighbours do not run into each other.
            yield _text(min(right, _LEFT + _PLOT_WIDTH), bottom + 38, stretch.phase, "tick end")


def _lines(panel: _Panel) -> Iterator[str]:
    right = _LEFT + _PLOT_WIDTH
    if panel.upper:
        y = panel.y(panel.upper)
        yield f'<line class="upper" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield _text(right + 8, y + 4, f"upper bound {format_bytes(panel.upper)}", "tick")
    y = panel.y(panel.limit) if panel.is_to_scale else float(_TOP + 6)
    is_crowded = panel.upper and abs(y - panel.y(panel.upper)) < 14
    yield f'<line class="limit" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    yield _text(right + 8, y - 10 if is_crowded else y + 4, f"can be used: {format_bytes(panel.limit)}", "tick strong")
    if not panel.is_to_scale:
        yield _text(right + 8, y + 18, "(far above: not to scale)", "note")
        for x in (_LEFT - 6, right - 6):
            yield f'<path class="break" d="M{x},{y + 22:.1f} l12,-5 m-12,-1 l12,-5"/>'


def _legend(panel: _Panel) -> Iterator[str]:
    left, peak = _LEFT + _PLOT_WIDTH + 16, bytes_at_peak(panel.memory)
    total = sum(peak.values())
    kinds = list(reversed(kinds_drawn(panel.memory)))
    y = _TOP + _PLOT_HEIGHT - 20 * len(kinds)
    yield _text(left, y - 26, f"alive at the peak: {format_bytes(total)}", "tick strong")
    for kind in kinds:
        num_bytes = peak.get(kind, 0)
        share = f"{format_bytes(num_bytes)}, {100 * num_bytes / max(1, total):.0f} %"
        yield f'<rect class="k{_number(kind)}" x="{left}" y="{y - 11}" width="12" height="12"/>'
        yield _text(left + 18, y, str(kind), "tick")
        yield _text(_WIDTH - 8, y, share, "tick end")
        y += 20


def _stage_text(plan: Plan, panel: _Panel) -> str:
    stage = panel.stage
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class=n>{format_bytes(num_bytes)}</td><td>{escape(source)}</td></tr>"
        for name, num_bytes, source in parts_of_device(plan.rig, stage)
    )
    total = sum(num_bytes for _, num_bytes, _ in parts_of_device(plan.rig, stage))
    sentence = _code(escape(describe_peak(panel.memory, stage)))
    return (
        f"<h2>{escape(panel.name or 'The peak')}</h2><p>{sentence}</p>"
        f"<p>Effective batch: {escape(describe_layout(stage.layout, plan.rig.kind))}.</p>"
        f"<table><caption>What one {panel.word} holds then (estimated)</caption>"
        f"<tr><th>part</th><th class=n>bytes</th><th>source</th></tr>{rows}"
        f"<tr><th>in all</th><th class=n>{format_bytes(total)}</th><th></th></tr></table>"
    )


def _code(text: str) -> str:
    """Return text with what stands between backquotes as code."""
    parts = text.split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))


def _ticks(top: int) -> list[tuple[int, str]]:
    """Return four to ten round heights up to `top`, with labels in one unit."""
    unit, name = (GIB, "GiB") if top >= 2 * GIB else (MIB, "MiB")
    span = top / unit
    step = next(n * 10**power for power in range(-3, 7) for n in (1, 2, 5) if span / (n * 10**power) <= 8)
    digits = 0 if step >= 1 else 1 if step >= 0.1 else 3
    return [(round(i * step * unit), f"{i * step:.{digits}f} {name}") for i in range(int(span / step) + 1)]


def _text(x: float, y: float, text: str, classes: str) -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _number(kind: Kind) -> int:
    return tuple(Kind).index(kind)


def _style() -> str:
    light = "".join(f".k{_number(kind)}{{fill:{colour}}}" for kind, colour in _LIGHT.items())
    dark = "".join(f".k{_number(kind)}{{fill:{colour}}}" for kind, colour in _DARK.items())
    return f"{_SVG_STYLE}{light}@media (prefers-color-scheme:dark){{{_SVG_DARK}{dark}}}"


_SVG_STYLE = (
    "svg{max-width:100%;height:auto}text{font:13px system-ui,sans-serif;fill:#222}.head{font-size:15px;font-weight:600}"
    ".note{font-size:12px;fill:#666}.strong{font-weight:600}.end{text-anchor:end}.middle{text-anchor:middle}"
    ".page{fill:#fff}.grid{stroke:#e2e2e2}.phase{stroke:#555;stroke-dasharray:2 3}.odd{fill:#eee}.even{fill:#ddd}"
    ".limit{stroke:#c00;stroke-width:2}.upper{stroke:#555;stroke-dasharray:6 4}.break{stroke:#777;fill:none}"
)
_SVG_DARK = (
    "text{fill:#ddd}.note{fill:#999}.page{fill:#161616}.grid{stroke:#333}.phase{stroke:#bbb}.odd{fill:#2a2a2a}"
    ".even{fill:#3a3a3a}.limit{stroke:#ff6b6b}.upper{stroke:#bbb}.break{stroke:#999}"
)
_PAGE_STYLE = (
    ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:1040px;margin:2em auto;"
    "padding:0 1em;background:#fff;color:#222}h1{font-size:1.3em}h2{font-size:1.1em}table{border-collapse:collapse}"
    "caption{text-align:left;padding-bottom:.4em}td,th{text-align:left;padding:.2em 1.2em .2em 0;"
    "border-top:1px solid #8885;vertical-align:top}.n{text-align:right;white-space:nowrap}"
    "@media (prefers-color-scheme:dark){body{background:#161616;color:#ddd}}"
)
