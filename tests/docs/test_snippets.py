"""Every command and snippet of README and docs: run here on something tiny, or named below with the reason why not.

A command that is in neither is run and fails until it can be, or has its reason. Those that are not run are still read
by the real parsers, with their recipes and settings.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import (
    PAGES,
    ROOT,
    avse_words,
    blocks,
    commands,
    inline_commands,
    name_of,
    options_of,
    outside_blocks,
    parser_of,
)
from PIL import Image

from avse.cli import VERBS, main

NOT_RUN: tuple[tuple[str, str, str], ...] = (
    (r".*", r"(python3 -m venv|\. avse-env|pip install|\. \.venv)", "sets up an environment: .ci/run does one"),
    (r".*", r"(make|/usr/bin/time -v make|\.ci/run|\.venv/bin/pre-commit|git clone|cd )", "the Makefile, run by CI"),
    (r"(?!serve).*", r".*\bavse serve\b", "serves until it is stopped: tests/serve"),
    (r"serve.md", r"(AVSE_TOKEN=\S+ )?avse serve\b", "serves until it is stopped: tests/serve"),
    (
        r"operations.md",
        r"(curl|export AVSE_TOKEN|avse (index|search) .*--url)",
        "asks a running server: serve.md's are run",
    ),
    (r".*", r"(\.venv/bin/)?avse demo", "some ten minutes: tests/demo runs it in small"),
    (r".*", r"(\.venv/bin/)?avse bench", "minutes to hours: tests/benchmarks runs them in small"),
    (r".*", r"(\.venv/bin/)?avse ablate", "many trainings: tests/cli/test_ablate.py runs it in small"),
    (r"training.md", r"(OMP_NUM_THREADS=8 )?(torchrun|accelerate)", "many processes: tests/test_trainer_parallel.py"),
    (r"reproduce.md", r"avse .*(flickr30k|coco)", "pictures that cannot be shipped: tests/test_recipes.py"),
    (r"reproduce.md", r"avse (compare|import)", "files of others: tests/cli/test_compare.py, test_import.py"),
    (r"confidence.md", r"avse evaluate", "wants hundreds of captions: tests/cli/test_calibrate.py"),
    (r"scale.md", r"(ray|docker|avse)", "a cluster: tests/scale runs Ray's nodes as processes"),
    (r"results.md", r"\.venv/bin/avse data scenes", "two thousand pictures; start.md makes fewer"),
    (r"(CONTRIBUTING|architecture).md", r"(\.venv/bin/)?python benchmarks/", "draws into docs: test_pages.py draws it"),
    (r"security.md", r"AVSE_FUZZ_EXAMPLES", "the fuzzing itself: make test-all runs less of it"),
    (r"export.md", r".*(push-to-hub|qdrant://)", "another machine: tests/export"),
)
"""(page, command, why it is not run here), regular expressions from the start; the first that fits counts."""

ELSEWHERE = {"export.md": "asks a Qdrant server: tests/export runs it through the client's local mode"}
"""Page -> why its blocks marked py are only compiled here, their imports made."""

LAID: dict[str, tuple[str, ...]] = {
    "README.md": (),
    "fine-tune.md": ("my-pictures", "models"),
    "training.md": ("my-pictures",),
    "explain.md": ("my-pictures", "runs"),
    "operations.md": ("my-pictures", "runs", "photos.avse"),
    "export.md": (
        *("my-pictures", "runs", "photos.avse", "runs/demo/model=runs/mine/model", "runs/demo/index.avse=photos.avse"),
        *("data/openclipart=my-pictures", "dog.jpg=my-pictures/images/000000.png"),
    ),
}
"""Page -> what its reader has before; a page that is not here begins with nothing."""

LONG = {"export.md", "fine-tune.md", "own-pictures.md", "training.md"}
"""Pages of many trainings, indexes and libraries."""

RUN_HERE = [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]


def commands_of(page: Path) -> Iterator[str]:
    for block in blocks(page):
        if block.language == "sh":
            yield from commands(block)


def reason(page: str, command: str) -> str | None:
    return next((why for where, what, why in NOT_RUN if re.match(where, page) and re.match(what, command)), None)


@pytest.fixture
def run(world: Path, tmp_path: Path):
    """Run one command where it stands: `avse` in this process, with tiny encoders, others by bash."""
    added: list[str] = []

    def go(command: str) -> str:
        words = avse_words(command)
        if words is None:
            done = subprocess.run(["bash", "-euc", command], capture_output=True, text=True, cwd=tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
            return done.stdout
        if words[0] == "train" and "--resume" not in words:  # a run goes on with the settings that it began with
            added[:] = small(words, world)
        more = {"train": added, "data": ["--count", "40", "--size", "64"] if "scenes" in words else []}
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            code = main([os.path.expanduser(word) for word in (*words, *more.get(words[0], []))])
        assert code == 0, f"{command}: exit status {code}\n{out.getvalue()}"
        if redirected := re.search(r" > (\S+)$", command):
            Path(redirected[1]).write_text(out.getvalue())
        return out.getvalue()

    return go


def small(words: list[str], world: Path) -> list[str]:
    """Return what is added to a training so that it takes a second: sizes and encoders, no other meaning."""
    said = " ".join(words)
    settings = {"train.epochs": 1, "train.batch_size": 8, "train.warmup_steps": 1}
    if "init_from=models/clip" in said:
        settings["model.block_width"] = 24
    elif "init_from" not in said:  # else the recipe of its training names them
        settings |= {"model.embed_dim": 16, "model.block_width": 8}
        for side, name in (("image", "vit-base-patch16-224"), ("text", "bert-base-uncased")):
            if f"{side}_encoder.source" not in said:
                settings[f"model.{side}_encoder.source"] = str(world / "models" / name)
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[pytest.mark.slow] if name_of(page) in LONG else [], id=name_of(page))
        for page in RUN_HERE
        if name_of(page) != "serve.md"  # test_the_servers_page_is_answered asks its questions
    ],
)
def test_a_page_does_what_it_says(page, lay_out, run, capsys):
    """All of a page, from top to bottom in one folder, as a reader would; printed values are those of the comments."""
    name = name_of(page)
    lay_out(*LAID.get(name, ()))
    names: dict[str, object] = {}
    for block in blocks(page):
        if block.language == "python":
            run_code(block.code, names, capsys)
        for command in commands(block) if block.language == "sh" else ():
            if reason(name, command) is None:
                run(command)


def run_code(code: str, names: dict[str, object], capsys: pytest.CaptureFixture[str]) -> None:
    """Run a snippet; where a line prints one value and a comment says it, they agree."""
    capsys.readouterr()
    exec(compile(code, "snippet", "exec"), names)
    if promised := re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE):
        assert capsys.readouterr().out.splitlines() == [comment.split(": ")[0] for comment in promised]


def test_the_servers_page_is_answered(lay_out, run, world, tmp_path, monkeypatch):
    """Both blocks of questions of serve.md, by curl, against a real server: without a token, and with one."""
    from serve_kit import TOKEN, running

    from avse.index import Index

    lay_out()
    (tmp_path / ".curlrc").write_text("fail\n")
    scenes = sorted((world / "my-pictures" / "images").glob("*.png"))
    for place, source in (("sea.jpg", scenes[0]), ("pictures/2019/sea.jpg", scenes[1]), ("pictures/a.png", scenes[2])):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.open(source).convert("RGB").save(tmp_path / place)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AVSE_TOKEN", TOKEN)
    asked = [block.code for block in blocks(ROOT / "docs" / "serve.md") if "curl" in block.code]
    assert len(asked) == 2 and "AUTH" in asked[1]
    with Index.create(tmp_path / "photos.avse", str(world / "runs" / "mine" / "model")) as index:
        index.add_images(tmp_path / "pictures", progress=False)
        for code, token in zip(asked, (None, TOKEN)):
            with running(index, token=token) as server:
                script, _, last = code.replace("localhost:8377", f"127.0.0.1:{server.port}").partition("avse index")
                answers = run(script)
                if last:
                    run("avse index" + last.splitlines()[0])
                    assert len(index) == 2  # 2024/sea.jpg came and went; the folder was there already
                else:
                    hits = json.JSONDecoder().raw_decode(answers)[0]["hits"]
                    assert hits == [] and "avse_requests_total" in answers  # the block's filter fits none of the two
                    told = (ROOT / "docs" / "operations.md").read_text()
                    assert all(name in answers for name in re.findall(r"`(avse_\w+)`", told))


def test_no_reason_outlives_its_command():
    used = {why for page in RUN_HERE for command in commands_of(page) if (why := reason(name_of(page), command))}
    assert used == {why for _, _, why in NOT_RUN}


@pytest.mark.parametrize("page", RUN_HERE, ids=name_of)
def test_every_command_is_one_of_the_parser(page):
    """Also those that are not run: verb, options, recipe and settings are real."""
    from avse.config import load_recipe

    for command in commands_of(page):
        words = avse_words(command)
        if words is None:
            continue
        args = parser_of(words[0]).parse_args(words[1:])
        recipe = getattr(args, "config", None)
        if hasattr(args, "set") and (recipe is None or not recipe.endswith(".yaml")):
            load_recipe(recipe, args.set, args.preset)


def test_commands_in_running_text_are_real():
    """Their verbs exist, and so do their options."""
    seen = 0
    for page in PAGES:
        for command in inline_commands(page):
            verb, *rest = command.split()[1:]
            assert verb in VERBS, f"{page}: {command}"
            named = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert named <= options_of(parser_of(verb)), f"{page}: {command}"
            seen += 1
    assert seen > 50


def test_code_that_is_not_run_compiles_and_finds_what_it_imports():
    found = {}
    for page in PAGES:
        for language, code in blocks(page):
            if language == "py":
                imports = [line for line in code.splitlines() if re.match(r"(from|import) ", line)]
                exec(compile("\n".join(imports), "imports", "exec"), {})
                compile(code, "snippet", "exec")
                found[name_of(page)] = len(imports)
    assert set(found) == set(ELSEWHERE) and all(found.values())


def test_no_command_hides_from_these_tests():
    """Commands stand in blocks marked sh, code in blocks marked python; nothing is indented instead."""
    command = rf"^( {{4}}|\t)?(\.venv/bin/)?(avse ({'|'.join(VERBS)})|pip|python) "
    for page in PAGES:
        others = [code for language, code in blocks(page) if language not in ("sh", "python", "py")]
        assert {language for language, _ in blocks(page)} <= {"sh", "python", "py", "json", "nginx", "sql", ""}, page
        for text in (*others, outside_blocks(page)):
            assert not re.search(command, text, re.MULTILINE), page
