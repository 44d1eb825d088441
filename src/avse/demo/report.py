"""The demo's results for people: a table for the terminal and one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from avse import files, markup
from avse.markup import Html, element


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
    """Return the commands to try next."""
    index = quote(str(out / "index.avse"))
    return [
        f"avse serve {'--demo' if out == Path('runs/demo') else index} --open",
        f'avse search {index} "a red flower" --sheet answers.png',
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
    head = ["system", *(f"{side} R@{k}" for side in ("i2t", "t2i") for k in (1, 5, 10))]
    rows = []
    for name, row in report["systems"].items():
        recalls = [f"{row[side][k]:.1f}" for side in ("i2t", "t2i") for k in ("r1", "r5", "r10")]
        low, high = row["rsum"]["ci"]
        label = markup.join([element("b", name), Html("<br>"), element("small", report["titles"][name], class_="note")])
        rsum, aware = element("b", f"{row['rsum']['mean']:.1f}"), row["duplicate_aware"]["rsum"]["mean"]
        rows.append([label, *recalls, rsum, f"{low:.1f} – {high:.1f}", f"{aware:.1f}"])
    differences = [
        [
            name,
            f"{row['mean']:+.1f}",
            f"{row['ci'][0]:+.1f} – {row['ci'][1]:+.1f}",
            f"{row['p']:.3f}",
            f"{row['duplicate_aware']['mean']:+.1f}",
        ]
        for name, row in report["differences"].items()
    ]
    timings = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report["timings"].items())
    return markup.page(
        "avse demo",
        element("h1", f"avse demo: {report['dataset']}"),
        element("p", f"{_stands_with(report)}."),
        element("h2", "Answers to sentences"),
        element(
            "p",
            f"The first answers of the index over {report['indexed']} pictures (training pictures included), by AVSE.",
        ),
        _image(out / "searches.png", "contact sheet of the searches"),
        element("h2", "Figures on the test split"),
        markup.table([*head, "rSum", "interval", "duplicate-aware rSum"], rows),
        element(
            "p",
            "All systems share the frozen encoders, the features, the number of epochs and of tuning trials. "
            "Intervals are 95 %, by bootstrap over images (and over seeds where there are several), the gallery fixed.",
            class_="note",
        ),
        element("h2", "Paired differences in test rSum"),
        markup.table(["pair", "mean", "95 % interval", "p", "duplicate-aware"], differences),
        element("h2", "Training"),
        _image(out / "curves.png", "loss and validation rSum over the epochs"),
        element("h2", "Try next"),
        element("pre", "\n".join(next_commands(out, Path(report["data"])))),
        element(
            "p",
            f"Time of this run (finished parts are reused): {timings}; peak memory {report['peak_memory_gib']} GiB. "
            f"{report['machine']}.",
            class_="note",
        ),
    )


def _image(path: Path, text: str) -> Html:
    if not path.is_file():
        return element("p", f"({text}: not drawn, matplotlib is missing)", class_="note")
    return markup.picture(path.read_bytes(), text)
