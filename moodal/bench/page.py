"""The HTML page of a report: one file, one small style sheet, nothing loaded from anywhere, every text escaped."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_STYLE = """
:root{--ink:#1f2430;--soft:#5b6472;--line:#e2e5ea;--paper:#ffffff;--card:#f7f8fa;--accent:#0072b2;--warn:#8a4b00;
--warnbg:#fff6e6}
@media(prefers-color-scheme:dark){:root{--ink:#e6e8ec;--soft:#a3abb8;--line:#333a46;--paper:#14171d;--card:#1c2129;
--accent:#56b4e9;--warn:#ffc766;--warnbg:#2c2415}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1120px;margin:0 auto;padding:28px 20px 60px}h1{font-size:27px;line-height:1.2;margin:0 0 6px}
h2{font-size:19px;margin:38px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:15px;margin:22px 0 6px}p{margin:8px 0;max-width:78ch}.lead{color:var(--soft);margin:0 0 18px}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(190px,1fr));gap:10px;margin:16px 0}
.fact{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:9px 13px}
.fact b{display:block;font-size:12px;font-weight:500;color:var(--soft)}.fact span{overflow-wrap:anywhere}
.big span{font-size:20px;font-weight:650;font-variant-numeric:tabular-nums}
nav{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:14px;margin:14px 0 0}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:13.5px;min-width:50%}
caption{text-align:left;color:var(--soft);padding:0 0 6px}
th,td{padding:6px 8px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
th{font-weight:600;white-space:nowrap}thead th{border-bottom:2px solid var(--soft)}
.number{font-variant-numeric:tabular-nums;white-space:nowrap}th.number,td.number{text-align:right}
td small{display:block;color:var(--soft);font-size:11.5px;font-weight:400}
th:first-child,td:first-child{padding-left:0;min-width:120px}.wide td:not(.number){min-width:150px}
.note{color:var(--soft);font-size:13px}
.absent{color:var(--warn);background:var(--warnbg);border-radius:6px;padding:7px 12px;font-size:13.5px}
figure{margin:14px 0;background:#fff;border:1px solid var(--line);border-radius:8px;padding:10px}
figure img{display:block;max-width:100%;height:auto;margin:0 auto}
figcaption{color:#5b6472;font-size:13px;padding:8px 4px 0;max-width:90ch}
.clip{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:12px 16px;margin:12px 0}
.clip header{display:flex;flex-wrap:wrap;gap:4px 18px;align-items:baseline;font-variant-numeric:tabular-nums}
.clip code{overflow-wrap:anywhere}
.clip q{display:block;margin:8px 0;quotes:none;font-size:15.5px;overflow-wrap:anywhere}
.clip dl{display:grid;grid-template-columns:max-content 1fr;gap:3px 14px;margin:6px 0 0;font-size:14px}
.clip dt{color:var(--soft)}.clip dd{margin:0;overflow-wrap:anywhere}
.gate{display:flex;height:9px;max-width:360px;border-radius:4px;overflow:hidden;margin:7px 0 2px}
.legend{font-size:12.5px;color:var(--soft)}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:11px 14px;overflow-x:auto;
font-size:13px;line-height:1.45}
details{margin:10px 0}summary{cursor:pointer;color:var(--accent)}
@media(max-width:560px){.clip dl{grid-template-columns:1fr}.clip dt{margin-top:5px}main{padding:18px 14px 40px}}
@media print{nav{display:none}figure,.clip{break-inside:avoid}}
"""


@dataclass
class Page:
    """Sections in order; each is a title and finished HTML."""

    title: str
    lead: str
    sections: list[tuple[str, list[str]]] = field(default_factory=list)
    head: list[str] = field(default_factory=list)

    def section(self, title: str) -> list[str]:
        """Begin a section and return the list to which its parts are added."""
        parts: list[str] = []
        self.sections.append((title, parts))
        return parts

    def render(self) -> str:
        """The whole document."""
        filled = [(title, parts) for title, parts in self.sections if parts]
        links = "".join(f"<a href='#s{place}'>{escape(title)}</a>" for place, (title, _) in enumerate(filled))
        body = "".join(
            f"<section id='s{place}'><h2>{escape(title)}</h2>{''.join(parts)}</section>"
            for place, (title, parts) in enumerate(filled)
        )
        return (
            "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
            "<meta name='viewport' content='width=device-width,initial-scale=1'>"
            "<meta http-equiv='Content-Security-Policy' "
            "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
            "<meta name='color-scheme' content='light dark'>"
            f"<title>{escape(self.title)}</title><style>{_STYLE}</style></head>"
            f"<body><main><h1>{escape(self.title)}</h1><p class='lead'>{escape(self.lead)}</p>"
            f"{''.join(self.head)}<nav>{links}</nav>{body}</main></body></html>\n"
        )


def escape(text: object) -> str:
    """Text for any place in the page."""
    return html.escape(str(text), quote=True)


def paragraph(text: str) -> str:
    """A paragraph of running text."""
    return f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """A remark in small type."""
    return f"<p class='note'>{escape(text)}</p>"


def absent(text: str) -> str:
    """A sentence in place of a piece that cannot be shown."""
    return f"<p class='absent'>{escape(text)}</p>"


def facts(items: Iterable[tuple[str, str]], *, big: bool = False) -> str:
    """Small cards of a name and a value."""
    kind = "fact big" if big else "fact"
    cards = "".join(
        f"<div class='{kind}'><b>{escape(name)}</b><span>{escape(value)}</span></div>" for name, value in items
    )
    return f"<div class='facts'>{cards}</div>" if cards else ""


def figure(svg: bytes, *, caption: str) -> str:
    """An SVG as an embedded image, where nothing inside it can run or load."""
    code = base64.b64encode(svg).decode("ascii")
    words = escape(caption)
    image = f"<img alt='{words}' src='data:image/svg+xml;base64,{code}'>"
    return f"<figure>{image}<figcaption>{words}</figcaption></figure>"


def code(text: str) -> str:
    """Text as it is, in a frame."""
    return f"<pre>{escape(text)}</pre>"


def folded(title: str, *parts: str) -> str:
    """Parts behind a line that opens on a click."""
    return f"<details><summary>{escape(title)}</summary>{''.join(parts)}</details>"


def settings(mapping: Mapping[str, Any]) -> str:
    """A nested mapping as a two-column table of dotted names."""
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(value)}</td></tr>" for name, value in _dotted(mapping))
    return f"<div class='scroll'><table><tbody>{rows}</tbody></table></div>" if rows else ""


def _dotted(mapping: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)):
            yield f"{prefix}{key}", ", ".join(str(item) for item in value)
        else:
            yield f"{prefix}{key}", "none" if value is None else str(value)


def gate_strip(names: Sequence[str], weights: Sequence[float], colours: Mapping[str, str]) -> str:
    """Weights as one coloured strip with their numbers below."""
    total = sum(weight for weight in weights if weight > 0) or 1.0
    strip = "".join(
        f"<i style='width:{100 * max(weight, 0.0) / total:.1f}%;background:{colours.get(name, '#5b5b5b')}'></i>"
        for name, weight in zip(names, weights)
    )
    words = escape(", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights)))
    return f"<div class='gate' role='img' aria-label='{words}'>{strip}</div><div class='legend'>gates: {words}</div>"
