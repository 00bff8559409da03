"""The curve of `prewarm replay` as a page that needs nothing else: inline SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from agent.demand.propose import Proposal

_WIDTH, _HEIGHT, _EDGE = 640, 400, 48


def page(title: str, lines: Sequence[dict[str, float]], proposed: Sequence[Proposal]) -> str:
    """Return HTML with warm returns over wasted idle time, all and after four hours, the numbers, and what to declare."""
    head = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in lines[0])
    body = "".join("<tr>" + "".join(f"<td>{value:g}</td>" for value in line.values()) + "</tr>" for line in lines)
    return (
        '<!doctype html><meta charset="utf-8"><title>prewarm replay</title>'
        "<style>body{font:14px sans-serif}td,th{padding:2px 8px;text-align:right}</style>"
        f"<h1>Warm returns over wasted idle time</h1><p>{escape(title)}</p>{_plot(lines)}"
        f"<table><tr>{head}</tr>{body}</table>{''.join(_proposal(each) for each in proposed)}\n"
    )


def _proposal(proposal: Proposal) -> str:
    wanted = "\n".join(f'{name}: "{value}"' for name, value in proposal.annotations.items()) or "remove its schedule"
    return f"<h2>{escape(proposal.endpoint)}</h2><p>{escape(proposal.why)}</p><pre>{escape(wanted)}</pre>"


def _plot(lines: Sequence[dict[str, float]]) -> str:
    axes = "".join(
        f'<text x="{_x(tick)}" y="{_HEIGHT - 20}">{tick}%</text><text x="4" y="{_y(tick)}">{tick}%</text>'
        f'<path d="M{_x(0)} {_y(tick)}H{_x(100)}" stroke="#ddd"/>'
        for tick in range(0, 101, 20)
    )
    curves = "".join(
        _curve(lines, *each) for each in (("hit_pct", "#06c", "all returns"), ("hit_pct_after_4h", "#c60", "after 4 h"))
    )
    return f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img">{axes}{curves}</svg>'


def _curve(lines: Sequence[dict[str, float]], name: str, colour: str, title: str) -> str:
    points = sorted((line["waste_pct"], line[name]) for line in lines)
    path = " ".join(f"{_x(waste)},{_y(hit)}" for waste, hit in points)
    dots = "".join(f'<circle cx="{_x(waste)}" cy="{_y(hit)}" r="3" fill="{colour}"/>' for waste, hit in points)
    waste, hit = points[-1]
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}"/>{dots}'
        f'<text x="{_x(waste) + 6}" y="{_y(hit) - 6}" fill="{colour}">{title}</text>'
    )


def _x(percent: float) -> float:
    return round(_EDGE + percent / 100 * (_WIDTH - 3 * _EDGE), 1)


def _y(percent: float) -> float:
    return round(_HEIGHT - _EDGE - percent / 100 * (_HEIGHT - 2 * _EDGE), 1)
