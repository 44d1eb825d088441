"""README: its commands with the real encoders as a reader runs them, its figures as they were printed, its links.

That each command does something on tiny encoders, and that its code runs, is tests/docs/test_snippets.py's.
"""

import json
import re
import shlex
from pathlib import Path

import pytest

import warm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
FAST = (
    "--set model.embed_dim=64 --set model.block_width=32 --set train.epochs=1 --set model.image_encoder.resolution=96"
)


@pytest.mark.slow
def test_the_commands_do_what_they_say_with_the_real_encoders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = {}
    for command in BLOCKS[1].strip().splitlines():
        words = shlex.split(command, comments=True)[1:]
        if words[0] == "serve":  # tests/serve does that
            continue
        words += shlex.split({"train": FAST, "scenes": "--count 40 --size 64"}.get(words[words[0] == "data"], ""))
        process = warm.avse(*words, env={"HF_HUB_OFFLINE": "1"})
        out, err = process.communicate()
        assert process.returncode == 0, f"{command}\n{out}\n{err}"
        done[words[0]] = out
    assert "rSum" in done["evaluate"] and "split test" in done["evaluate"]
    assert len([line for line in done["search"].splitlines() if re.match(r"\s*[1-5]\s", line)]) == 5
    assert "square" in done["explain"]
    for picture in ("answers.png", "why.png"):
        assert (tmp_path / picture).read_bytes().startswith(b"\x89PNG")


def test_its_figures_are_those_of_the_results():
    """Recalls as the tables of results.md print them, milliseconds as the kept rows have them."""
    results = (ROOT / "docs" / "results.md").read_text()
    table = README[README.index("| what | figure | command |") :].split("\n\n")[0]
    scenes, clip_art, speed = [line.split("|")[2] for line in table.splitlines()[2:]]

    def rsums(heading: str) -> dict[str, str]:
        section = results.split(f"\n## {heading}")[1].split("\n## ")[0]
        rows = re.findall(r"^(\w+) +(?:[\d.]+ +){6}([\d.]+)  \(", section, re.MULTILINE)
        return dict(rows)

    made, real = rsums("Made scenes"), rsums("Open clip art")
    assert re.findall(r"\d+\.\d", scenes) == [made["avse"], made["infonce"]]
    assert re.findall(r"\d+\.\d", clip_art) == [real["avse"], real["vse_infinity"], real["vse_infinity_wide"]]
    kept = json.loads((ROOT / "benchmarks" / "results" / "scoring.json").read_text())["rows"]
    one = {row["way"]: row["seconds"] for row in kept if row["measure"] == "one query"}
    wanted = [one["avse int8 + rerank"], one["Qdrant Edge, exact"]]
    assert re.findall(r"(\d+) ms", speed) == [f"{1000 * seconds:.0f}" for seconds in wanted]


def test_the_first_commands_are_the_makefile_s():
    targets = [line.split("#")[0].split()[1] for line in BLOCKS[0].splitlines()]
    assert targets == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"\n{target}:" in makefile for target in targets)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


def test_it_is_short_and_its_links_lead_somewhere():
    assert README.count("\n") <= 110
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
