"""avse.data.openclipart on a small collection made here, as a folder and as real Debian packages."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from avse.data import debian, load_dataset
from avse.data.openclipart import PACKAGES, OpenClipartUnavailable, build_openclipart, make_openclipart

SVG = """<svg xmlns="http://www.w3.org/2000/svg"><metadata><rdf:RDF xmlns:cc="http://web.resource.org/cc/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work>
<dc:title>{title}</dc:title><dc:description>{description}</dc:description>
<dc:subject><rdf:Bag>{tags}</rdf:Bag></dc:subject><cc:license rdf:resource="{license}"/>
</cc:Work></rdf:RDF></metadata></svg>"""


def picture(seed, size=(40, 40)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (*size[::-1], 3), np.uint8))


def add(tree, name, title="", tags=(), description="", license="", image=None, seed=None):
    svg, png = tree / "svg" / f"{name}.svg", tree / "png" / f"{name}.png"
    svg.parent.mkdir(parents=True, exist_ok=True)
    png.parent.mkdir(parents=True, exist_ok=True)
    items = "".join(f"<rdf:li>{tag}</rdf:li>" for tag in tags)
    svg.write_text(SVG.format(title=title, description=description, tags=items, license=license))
    (image or picture(seed if seed is not None else zlib.crc32(name.encode()))).save(png)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    add(root, "animals/dog", "Dog", ("animal", "hash"), "A running dog. Made with Inkscape.")
    add(root, "animals/dog_2", "dog 2", ("animal", "puppy"))
    add(root, "computer/icons/flat-theme/save", "Save")
    for i in range(6):
        add(root, f"shapes/star{i}", "gramastar", ("star",))
    for i in range(5):
        add(root, f"shapes/ring{i}", "five rings", seed=100 + i)
    add(root, "tools/hammer", "Hammer", seed=7)
    add(root, "work/hammer_copy", "A mallet", seed=7)
    add(root, "work/free", "Proprietary", license="http://creativecommons.org/licenses/GPL/2.0/")
    add(root, "work/white", "Snow", image=Image.new("RGB", (9, 9), "white"))
    add(root, "work/entity", "x")
    (root / "svg/work/entity.svg").write_text('<!DOCTYPE svg [<!ENTITY a "b">]><svg>&a;</svg>')
    add(root, "work/broken", "x")
    (root / "svg/work/broken.svg").write_text("<svg>")
    add(root, "work/cut", "Cut")
    data = (root / "png/work/cut.png").read_bytes()
    (root / "png/work/cut.png").write_bytes(data[: len(data) // 2])
    add(root, "work/alone", "Alone")
    (root / "png/work/alone.png").unlink()
    add(root, "work/linked", "Dog again")
    (root / "png/work/linked.png").unlink()
    (root / "png/work/linked.png").symlink_to("../animals/dog.png")
    add(root, "work/outside", "x")
    picture(9).save(tmp_path / "outside.png")
    (root / "png/work/outside.png").unlink()
    (root / "png/work/outside.png").symlink_to(tmp_path / "outside.png")
    return root


def test_what_is_kept_and_what_is_said_of_it(tree, tmp_path):
    counts = make_openclipart(tree, tmp_path / "out", size=32)
    said = {line["image"]: line for line in map(json.loads, (tmp_path / "out/captions.jsonl").read_text().splitlines())}
    assert sorted(said) == sorted(
        [f"images/{name}.png" for name in ("animals/dog", "animals/dog_2", "tools/hammer")]
        + [f"images/shapes/ring{i}.png" for i in range(5)]
    )
    assert said["images/animals/dog.png"]["captions"] == ["Dog", "A running dog.", "Dog again", "animal"]
    assert said["images/animals/dog.png"]["sources"] == ["svg/animals/dog.svg", "svg/work/linked.svg"]
    assert said["images/animals/dog_2.png"]["captions"] == ["dog 2", "puppy, animal"]
    assert said["images/animals/dog_2.png"]["tags"] == ["animal", "puppy"]
    assert said["images/tools/hammer.png"]["captions"] == ["Hammer", "A mallet"]
    assert said["images/tools/hammer.png"]["folder"] == "tools"
    assert said["images/shapes/ring0.png"]["captions"] == ["five rings"]
    on_disk = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out/images").rglob("*.png")}
    assert on_disk == set(said)
    assert (counts["pictures"], counts["captions"], counts["texts_dropped"]) == (8, 13, 2)
    assert counts["captions_shared"] == round(5 / 13, 4)
    assert sum(counts["splits"].values()) == 8


def test_every_skip_is_listed_with_its_reason(tree, tmp_path):
    make_openclipart(tree, tmp_path / "out", size=32)
    skipped = {skip["name"]: skip["reason"] for skip in json.loads((tmp_path / "out/skipped.json").read_text())}
    expected = {
        "computer/icons/flat-theme/save": "icon theme",
        "work/hammer_copy": "a copy, captions merged: the pixels of tools/hammer",
        "work/linked": "a copy, captions merged: the file of animals/dog",
        "work/free": "not in the public domain: http://creativecommons.org/licenses/GPL/2.0/",
        "work/white": "nothing to be seen on white",
        "work/entity": "declares entities, which are not read: a",
        "work/alone": "no PNG of the same path",
        "work/outside": "a link that leaves the collection",
    }
    assert {name: skipped[name] for name in expected} == expected
    assert skipped["work/broken"].startswith("broken XML: ")
    assert skipped["work/cut"].startswith("unreadable: ")
    assert all(skipped[f"shapes/star{i}"].startswith("no text of its own") for i in range(6))
    assert len(skipped) == len(expected) + 2 + 6


def test_pictures_of_one_title_group_are_in_one_split_also_through_copies(tmp_path):
    for i in range(40):
        add(tmp_path / "tree", f"a/x{i}", f"Thing {chr(97 + i // 2) * 3} {i}", seed=i)
    add(tmp_path / "tree", "b/copy", "Thing bbb", seed=0)  # the pixels of x0, which is a Thing aaa
    make_openclipart(tmp_path / "tree", tmp_path / "out", size=32)
    split = {i: None for i in range(40)}
    for line in map(json.loads, (tmp_path / "out/captions.jsonl").read_text().splitlines()):
        split[int(line["image"].split("x")[1][:-4])] = line["split"]
    assert all(split[i] == split[i + 1] for i in range(0, 40, 2))
    assert split[0] == split[2]
    assert len(set(split.values())) == 3


def test_pixels_are_on_white_without_transparent_margins_and_not_squashed(tmp_path):
    image = Image.new("RGBA", (100, 60))
    image.paste((255, 0, 0, 255), (10, 10, 50, 30))  # 40 x 20
    add(tmp_path / "tree", "a/box", "Box", image=image)
    make_openclipart(tmp_path / "tree", tmp_path / "out", size=50)
    found = np.asarray(Image.open(tmp_path / "out/images/a/box.png"))
    assert found.shape == (50, 50, 3)
    expected = np.full((50, 50, 3), 255, np.uint8)
    expected[13:37, 1:49] = (255, 0, 0)  # 2 % white at the sides: 48 x 24 in the middle
    assert np.array_equal(found, expected)


def test_an_empty_collection(tmp_path):
    (tmp_path / "svg").mkdir()
    with pytest.raises(OpenClipartUnavailable, match="no SVG with a PNG"):
        make_openclipart(tmp_path, tmp_path / "out", size=32)


def package(tree, folder, name, kind):
    root = folder / name
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1:0.18\nArchitecture: all\nMaintainer: nobody <no@example.org>\nDescription: test\n"
    )
    shutil.copytree(tree / kind, root / "usr/share/openclipart" / kind, symlinks=True)
    command = ["dpkg-deb", "-b", "--root-owner-group", str(root), str(folder / f"{name}_1%3a0.18_all.deb")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def debs(tree, tmp_path):
    if shutil.which("dpkg-deb") is None:
        pytest.skip("no dpkg-deb on this machine")
    folder = tmp_path / "debs"
    for name, kind in zip(PACKAGES, ("svg", "png")):
        package(tree, folder, name, kind)
    return folder


def test_from_packages_given_by_folder(debs, tmp_path):
    out = tmp_path / "data" / "clip"
    counts = build_openclipart(out, size=32, debs=debs)
    assert counts["pictures"] == 8
    assert sorted(counts["packages"]) == ["openclipart-png_1%3a0.18_all.deb", "openclipart-svg_1%3a0.18_all.deb"]
    assert sorted(path.name for path in out.iterdir()) == ["captions.jsonl", "dataset.json", "images", "skipped.json"]
    assert [path.name for path in out.parent.iterdir()] == ["clip"]
    assert load_dataset(out, split="all").num_pairs == counts["captions"]
    assert build_openclipart(out, size=32, debs=tmp_path / "nowhere") == counts  # reused, nothing is read
    with pytest.raises(FileExistsError, match="size 32, 64 is wanted"):
        build_openclipart(out, size=64, debs=debs)


def test_damaged_and_missing_packages(debs, tmp_path):
    png = debs / "openclipart-png_1%3a0.18_all.deb"
    png.write_bytes(png.read_bytes()[:2000])
    with pytest.raises(
        OpenClipartUnavailable,
        match=r"cannot be had: dpkg -x openclipart-png_1%3a0.18_all.deb failed.*--debs.*made scenes",
    ):
        build_openclipart(tmp_path / "out", size=32, debs=debs)
    png.unlink()
    with pytest.raises(OpenClipartUnavailable, match=r"openclipart-png_\*\.deb is wanted, openclipart-svg_1%3a0"):
        build_openclipart(tmp_path / "out", size=32, debs=debs)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="8 px asked for: at least 32"):
        build_openclipart(tmp_path / "out", size=8, debs=debs)


def fake_apt(folder, script):
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(stat.S_IRWXU)


def test_from_apt_get_with_a_state_of_its_own(debs, tmp_path, monkeypatch):
    log = tmp_path / "log"
    fake_apt(
        tmp_path / "bin",
        f'echo "$@" >> {log}\ncase "$*" in *download*) cp {debs}/*.deb . ;; esac',
    )
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    monkeypatch.chdir(tmp_path)
    counts = build_openclipart(Path("out"), size=32)  # a relative folder, as the demo's
    assert counts["pictures"] == 8
    update, download = log.read_text().splitlines()
    assert update.endswith(" update") and download.endswith(" download openclipart-svg openclipart-png")
    for call in (update, download):
        assert f"Dir::State={tmp_path}" in call and f"Dir::Cache={tmp_path}" in call


def test_apt_get_that_fails_says_why(tmp_path, monkeypatch):
    fake_apt(tmp_path / "bin", 'echo "W: noise" >&2; echo "E: Unable to locate package openclipart-svg" >&2; exit 100')
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    with pytest.raises(
        OpenClipartUnavailable, match=r"cannot be had: apt-get update failed \(100\): E: Unable to locate"
    ):
        build_openclipart(tmp_path / "out", size=32)
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]


def test_no_apt_get_and_one_that_hangs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(OpenClipartUnavailable, match="apt-get is not on this machine"):
        build_openclipart(tmp_path / "out", size=32)
    fake_apt(tmp_path / "bin", "exec /bin/sleep 30")
    monkeypatch.setattr(debian, "_UPDATE_LIMIT_S", 0.2)
    with pytest.raises(OpenClipartUnavailable, match=r"apt-get update was not done after 0\.2 s"):
        build_openclipart(tmp_path / "out", size=32)
