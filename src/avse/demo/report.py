"""The demo's results for people: a table for the terminal and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from pathlib import Path
from shlex import quote
from typing import Any

from avse import files

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; width: 100%; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; height: auto; border-radius: 6px; background: #fff; }
code, pre { background: var(--soft); border-radius: 4px; padding: .1rem .3rem; }
pre { padding: .8rem; overflow-x: auto; }
.note { opacity: .75; font-size: .9em; }
.wide { overflow-x: auto; }
"""


def table(report: dict[str, Any]) -> str:
    """Draw the comparison for the terminal."""
    lines = [
        f"{'system':20}  i2t R@1   R@5  R@10   t2i R@1   R@5  R@10    rSum  (interval)        duplicate-aware rSum",
    ]
    for name, row in report["systems"].items():
        recalls = "   ".join(" ".join(f"{row[side][k]:5.1f}" for k in ("r1", "r5", "r10")) for side in ("i2t", "t2i"))
        low, high = row["rsum"]["ci"]
        aware = row["duplicate_aware"]["rsum"]
        lines.append(
            f"{name:20}    {recalls}   {row['rsum']['mean']:6.1f}  ({low:5.1f} to {high:5.1f})   "
            f"{aware['mean']:6.1f}  ({aware['ci'][0]:5.1f} to {aware['ci'][1]:5.1f})"
        )
    lines.append(
        "paired differences in test rSum, with 95 % intervals (bootstrap over images, and over seeds if several):"
    )
    for name, row in report["differences"].items():
        low, high = row["ci"]
        lines.append(f"  {name:25} {row['mean']:+6.1f}  ({low:+6.1f} to {high:+6.1f})  p {row['p']:.3f}")
    lines.append(_stands_with(report))
    return "\n".join(lines)


def write_report(out: Path, report: dict[str, Any]) -> Path:
    """Write `out`/report.html with table, curves and contact sheet inside it."""
    path = out / "report.html"
    files.write_text(path, _page(out, report))
    return path


def next_commands(out: Path, data: Path) -> list[str]:
    """Return the three commands to try next."""
    return [
        f'avse search {quote(str(out / "index.avse"))} "a red flower" --sheet answers.png',
        f"avse evaluate {quote(str(out / 'model'))} {quote(str(data))}",
        f"avse index YOUR_PICTURES --model {quote(str(out / 'model'))} --out photos.avse",
    ]


def _stands_with(report: dict[str, Any]) -> str:
    images, ceiling = report["images"], report["ceiling_r1"]
    return (
        f"{report['dataset']}, test split: {images['test']} images, {report['pairs']} captions; trained on "
        f"{images['train']} images, epoch chosen on {images['val']} validation images; {report['resolution']} px, "
        f"{report['precision']}, seeds {report['seeds']}; {100 * report['shared_texts']:.1f} % of the test captions "
        f"stand on several pictures, so the plain R@1 of a model that knows every text is {ceiling['i2t']:.1f} i2t, "
        f"{ceiling['t2i']:.1f} t2i"
    )


def _page(out: Path, report: dict[str, Any]) -> str:
    head = "".join(
        f"<th>{h}</th>"
        for h in (
            "system",
            "i2t R@1",
            "R@5",
            "R@10",
            "t2i R@1",
            "R@5",
            "R@10",
            "rSum",
            "interval",
            "duplicate-aware rSum",
        )
    )
    rows = []
    for name, row in report["systems"].items():
        cells = [f"{row[side][k]:.1f}" for side in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
        low, high = row["rsum"]["ci"]
        cells += [f"<b>{row['rsum']['mean']:.1f}</b>", f"{low:.1f} – {high:.1f}"]
        cells.append(f"{row['duplicate_aware']['rsum']['mean']:.1f}")
        label = f"<b>{html.escape(name)}</b><br><span class=note>{html.escape(report['titles'][name])}</span>"
        rows.append(f"<tr><td>{label}</td>" + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    differences = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{row['mean']:+.1f}</td><td>{row['ci'][0]:+.1f} – {row['ci'][1]:+.1f}</td>"
        f"<td>{row['p']:.3f}</td><td>{row['duplicate_aware']['mean']:+.1f}</td></tr>"
        for name, row in report["differences"].items()
    )
    timings = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["timings"].items())
    commands = html.escape("\n".join(next_commands(out, Path(report["data"]))))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>avse demo</title><style>{_STYLE}</style></head><body>
<h1>avse demo: {html.escape(report["dataset"])}</h1>
<p>{html.escape(_stands_with(report))}.</p>
<h2>Answers to sentences</h2>
<p>The first answers of the index over {report["indexed"]} pictures (training pictures included), by AVSE.</p>
{_image(out / "searches.png", "contact sheet of the searches")}
<h2>Figures on the test split</h2>
<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>
<p class=note>All systems share the frozen encoders, the features, the number of epochs and of tuning trials.
Intervals are 95 %, by bootstrap over images (and over seeds where there are several), the gallery fixed.</p>
<h2>Paired differences in test rSum</h2>
<table><thead><tr><th>pair</th><th>mean</th><th>95 % interval</th><th>p</th><th>duplicate-aware</th></tr></thead>
<tbody>{differences}</tbody></table>
<h2>Training</h2>
{_image(out / "curves.png", "loss and validation rSum over the epochs")}
<h2>Try next</h2><pre>{commands}</pre>
<p class=note>Time of this run (finished parts are reused): {timings}; peak memory
{report["peak_memory_gib"]} GiB. {html.escape(report["machine"])}.</p>
</body></html>
"""


def _image(path: Path, text: str) -> str:
    if not path.is_file():
        return f"<p class=note>({html.escape(text)}: not drawn, matplotlib is missing)</p>"
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'
