"""The report as one HTML file: no script, nothing from outside, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from rlvr_decode.analyze import geometry
from rlvr_decode.analyze.run import Analysis
from rlvr_decode.analyze.top_tokens import Place
from rlvr_decode.charts import Chart, svg

_STYLE = (
    svg.STYLE
    + """
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 6px; }
p { max-width: 78ch; margin: 6px 0 14px; color: var(--faint); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: 12px; }
.card { border: 1px solid var(--rule); border-radius: 10px; padding: 12px 14px; }
.card b { display: block; font-size: 22px; } .card span { color: var(--faint); font-size: 13px; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(460px, 100%), 1fr));
  gap: 18px; }
.wide { max-width: 820px; }
.scroll { overflow-x: auto; margin-top: 12px; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--faint); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--faint); font-weight: 500; } td.n { font-variant-numeric: tabular-nums; }
code { font: 13px ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere; }
.text { border: 1px solid var(--rule); border-radius: 10px; padding: 10px 14px; margin: 8px 0; }
.faint { color: var(--faint); } .text span { border-radius: 3px; padding: 1px 0; }
mark { background: var(--c1); color: var(--paper); border-radius: 3px; padding: 0 2px; }
footer { margin-top: 44px; color: var(--faint); font-size: 13px; }
"""
)
# Δ of a token that is tinted fully.
_FULL_TINT = 1.5


def page(analysis: Analysis) -> str:
    """The whole file."""
    title = f"{escape(analysis.pair)} on {escape(analysis.task)}"
    sections = [
        f"<h1>{title}: where base and rlvr differ</h1>",
        f"<p>{escape(analysis.about)}</p>",
        _cards(analysis),
        _differences(analysis),
        _replacement(analysis),
        _tokens(analysis),
        _geometry(analysis),
        "<footer>Made by <code>rlvr-decode analyze</code>; the numbers are in "
        "<code>analysis.json</code> beside this file.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, sections))
        + "\n</main>\n</body>\n</html>\n"
    )


def _cards(analysis: Analysis) -> str:
    base, rlvr = analysis.tails["base"], analysis.tails["rlvr"]
    separation = analysis.separations["delta"]
    shown = [
        (f"{100 * analysis.accuracies['base'].mean:.1f} %", "accuracy of base"),
        (f"{100 * analysis.accuracies['rlvr'].mean:.1f} %", "accuracy of rlvr"),
        (f"{rlvr['mean_kl']:.4f}", "mean KL(rlvr ‖ base), nats a token, on rlvr's text"),
        (f"{100 * rlvr['share_beyond']['0.1']:.1f} %", "of rlvr's tokens have |Δ| > 0.1"),
        (f"{100 * base['share_beyond']['0.1']:.1f} %", "of base's tokens have |Δ| > 0.1"),
        (f"{100 * rlvr['same_first_token']:.1f} %", "of positions have one likeliest token"),
        (f"{separation.of_responses:.3f}", "AUROC of a response's summed Δ: who wrote it?"),
    ]
    cards = (
        f'<div class="card"><b>{value}</b><span>{label}</span></div>' for value, label in shown
    )
    return f'<div class="cards">{"".join(cards)}</div>'


def _differences(analysis: Analysis) -> str:
    rows = [
        [
            escape(name),
            f"{found.of_tokens:.3f} [{found.low:.3f}, {found.high:.3f}]",
            f"{found.of_responses:.3f}",
        ]
        for name, found in analysis.separations.items()
    ]
    probabilities = [
        [
            f"{row['low']:+.2f} … {row['high']:+.2f}",
            f"{row['tokens']:,}",
            f"{row['base_probability']:.4f}",
            f"{row['rlvr_probability']:.4f}",
        ]
        for row in analysis.by_delta
    ]
    return "\n".join(
        [
            "<h2>Differences, token by token</h2>",
            "<p>Both models read the responses that each of them wrote. Nearly all tokens are the "
            "same to both; training shows in the tails. AUROC is the chance that a token of rlvr's "
            "responses has a larger value than one of base's: 0.5 is a coin's.</p>",
            _charts(analysis.histogram_charts),
            _table(["metric", "AUROC of tokens, 95 %", "AUROC of summed responses"], rows),
            "<h2>Probabilities by Δ</h2>",
            "<p>Tokens of both models' responses. A large Δ belongs to tokens that are rare for "
            "base.</p>",
            _table(["Δ", "tokens", "mean p under base", "mean p under rlvr"], probabilities),
        ]
    )


def _replacement(analysis: Analysis) -> str:
    if analysis.replacement_chart is None:
        return ""
    rows = [
        [
            escape(point.criterion),
            "–" if point.threshold is None else f"{point.threshold:.4g}",
            f"{100 * point.share:.2f} %",
            f"{100 * point.accuracy.mean:.1f} "
            f"[{100 * point.accuracy.low:.1f}, {100 * point.accuracy.high:.1f}]",
        ]
        for point in analysis.points
    ]
    return "\n".join(
        [
            "<h2>Replacing base's tokens by rlvr's</h2>",
            "<p>Each token is drawn from base and, where the criterion says so, drawn again from "
            "rlvr. The fewer replacements it takes to reach rlvr's accuracy, the better the "
            "criterion finds what training changed. Intervals are 95 %, over prompts.</p>",
            f'<div class="wide">{svg.render(analysis.replacement_chart)}</div>',
            "<details><summary>The numbers</summary>",
            _table(["criterion", "threshold", "replaced", "accuracy %"], rows),
            "</details>",
        ]
    )


def _tokens(analysis: Analysis) -> str:
    kinds = [
        [f"<code>{_visible(kind.token)}</code>", f"{kind.count:,}", f"{kind.mean_delta:+.3f}",
         f"{kind.summed_delta:+.2f}"]
        for kind in analysis.kinds
    ]  # fmt: skip
    parts = [
        "<h2>Tokens that training raised most</h2>",
        _places(analysis.raised),
        "<h2>Tokens that training lowered most</h2>",
        _places(analysis.lowered),
        "<h2>Tokens by the Δ they carry together</h2>",
        _table(["token", "places", "mean Δ", "summed Δ"], kinds),
        "<h2>Responses, tinted by Δ</h2>",
        "<p>Blue was raised by training, orange lowered.</p>",
    ]
    for author, prompt, response in analysis.shown:
        tinted = "".join(
            f'<span style="background: color-mix(in srgb, var(--{"c0" if delta > 0 else "c1"}) '
            f'{min(100, round(100 * abs(delta) / _FULL_TINT))}%, transparent)" '
            f'title="Δ {delta:+.3f}">{_visible(text)}</span>'
            for text, delta in response
        )
        parts.append(
            f'<div class="text">{author} <code class="faint">{_visible(prompt)}</code>'
            f"<code>{tinted}</code></div>"
        )
    return "\n".join(parts)


def _places(places: Sequence[Place]) -> str:
    rows = [
        [
            f"<code>{_visible(place.before)}<mark>{_visible(place.token)}</mark></code>",
            f"{place.delta:+.2f}",
            f"{place.base_probability:.4f}",
            f"{place.rlvr_probability:.4f}",
            f"<code>{_visible(place.base_first)}</code>",
            f"<code>{_visible(place.rlvr_first)}</code>",
        ]
        for place in places
    ]
    head = ["token, after", "Δ", "p base", "p rlvr", "base's first", "rlvr's first"]
    return _table(head, rows)


def _geometry(analysis: Analysis) -> str:
    if analysis.geometry is None:
        return ""
    cells = [[escape(cell) for cell in row] for row in geometry.rows(analysis.geometry)]
    return (
        "<h2>Geometry of the update</h2>\n<p>Medians over the matrices of each kind; every matrix "
        "is in <code>geometry.json</code>.</p>\n" + _table(list(map(escape, geometry.HEADS)), cells)
    )


def _charts(charts: Sequence[Chart]) -> str:
    return f'<div class="grid">{"".join(map(svg.render, charts))}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML already."""
    heads = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(
        "<tr>" + "".join(f'<td class="n">{cell}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>'


def _visible(text: str) -> str:
    """Text with its line ends and tabs to be seen."""
    return escape(text.replace("\n", "⏎").replace("\t", "⇥"))
