"""Files made to do harm: each is refused with a clear error, nothing of it is run, nothing outside is touched."""

import gzip
import io
import json
import lzma
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
from robust_loaders import picture
from robust_models import tiny_model
from robust_records import write_rankings

from avse import bounded, checkpoint, files, rankings
from avse.config import ConfigError, change, load_recipe
from avse.data import load_dataset
from avse.data.debian import DebianError, unpack_package
from avse.data.shards import PairShards, ShardError
from avse.export.embeddings import embeddings_writer, read_embeddings
from avse.index.where import matches, parse
from avse.start import open_model


class Poison:
    """Runs a command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def mark(tmp_path):
    """Fails where the poison was run; the pickle itself works."""
    path = tmp_path / "mark"
    pickle.loads(pickle.dumps(Poison(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


def torch_zip(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return out.getvalue()


@pytest.mark.parametrize("packed", [True, False])
def test_a_poisoned_training_state(tmp_path, mark, packed):
    data = pickle.dumps({"optimizer": Poison(mark)})
    (tmp_path / "state.pt").write_bytes(torch_zip(data) if packed else data)
    with pytest.raises(checkpoint.CheckpointError, match=r"state.pt: not readable as plain values and tensors"):
        checkpoint.load_state(tmp_path / "state.pt")


@pytest.mark.parametrize("name", ["model.safetensors", "text_encoder/tokenizer.json", "config.json"])
def test_a_pickle_by_another_name_in_a_model(tmp_path, mark, request, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    (folder / name).write_bytes(torch_zip(pickle.dumps(Poison(mark))))
    with pytest.raises(files.ManifestError, match=name):
        open_model(folder)
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder)  # one who changes a file changes its digest, too
    with pytest.raises(ValueError, match=r"safetensors|text_encoder|config.json"):
        open_model(folder)


def test_code_in_a_model_is_not_run(tmp_path, mark, request, monkeypatch):
    """A configuration that names code of its own or a place on the hub changes nothing: nothing of it is fetched."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model(request), folder)
    before = open_model(folder).encode_texts(["a dog"])
    for place in ("image_encoder", "text_encoder"):
        (folder / place / "evil.py").write_text(f"import os\nos.system('touch {mark}')\n")
        said = json.loads((folder / place / "config.json").read_text())
        said["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoTokenizer": ["evil.T", None]}
        (folder / place / "config.json").write_text(json.dumps(said | {"_name_or_path": "someone/evil"}))
    config = json.loads((folder / "config.json").read_text())
    config["image_encoder"]["source"] = "someone/evil"
    config["text_encoder"]["source"] = "../../../etc"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / files.MANIFEST).unlink()
    files.write_manifest(folder)
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    assert np.array_equal(open_model(folder).encode_texts(["a dog"]), before)


def test_a_poisoned_array(tmp_path, mark):
    np.save(tmp_path / "test_ims.npy", np.array([[[Poison(mark)]]]), allow_pickle=True)
    (tmp_path / "test_caps.txt").write_text("one\n" * 5)
    with pytest.raises(ValueError, match="pickled objects are refused"):
        load_dataset(tmp_path, split="test")
    np.savez(tmp_path / "x.npz", header=np.array([Poison(mark)]), allow_pickle=True)
    with pytest.raises(rankings.RankingsError, match="x.npz: not a whole rankings file"):
        rankings.load_rankings(tmp_path / "x.npz")


def test_an_array_that_claims_a_million_gigabytes(tmp_path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 36, 2048), }"
    (tmp_path / "test_ims.npy").write_bytes(b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header + bytes(64))
    (tmp_path / "test_caps.txt").write_text("one\n" * 5)
    with pytest.raises(ValueError, match="no array file that can be mapped"):
        load_dataset(tmp_path, split="test")


TOO_MUCH = r"bytes or more unpacked, at most [\d,]+ are read of a file of this length"


@pytest.mark.parametrize("kind", ["npz", "parquet"])
def test_an_archive_that_unpacks_to_more_than_is_read(tmp_path, monkeypatch, kind):
    path = write_rankings(tmp_path / "r", kind)
    rankings.load_rankings(path)
    monkeypatch.setattr(bounded, "SPARE", 100)
    monkeypatch.setattr(bounded, "TIMES", 0)
    with pytest.raises(rankings.RankingsError, match=TOO_MUCH):
        rankings.load_rankings(path)


def test_embeddings_of_a_few_bytes_that_unpack_without_end(tmp_path):
    """300 MiB of one letter: as a payload in an archive, as an id that a dictionary repeats in a table."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    facts = {"side": "images", "P": 2, "Q": 1, "C": 4, "fingerprint": "f", "model": "m", "avse": "0"}
    with embeddings_writer(tmp_path / "e.npz", facts, {}) as write:
        write(["a"], np.full((1, 2, 4), 0.5, np.float32), [{"x": "a" * (300 << 20)}])
    with embeddings_writer(tmp_path / "e.parquet", facts, {}) as write:
        write(["a"], np.full((1, 2, 4), 0.5, np.float32), [{}])
    table = pq.read_table(tmp_path / "e.parquet")
    many = table.take([0] * 12).set_column(0, "id", pa.array(["a" * (30 << 20)] * 12))
    pq.write_table(many, tmp_path / "e.parquet", compression="zstd")
    for name, most in (("e.npz", 1 << 20), ("e.parquet", 50_000)):
        assert (tmp_path / name).stat().st_size < most
        with pytest.raises(ValueError, match=TOO_MUCH):
            read_embeddings(tmp_path / name)


OUT = ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "C:\\evil.png", "..\\evil.png", "C:evil.png"]


@pytest.fixture
def slipped(tmp_path):
    """A tar whose members lead out: by name, by links, and through a link; and devices."""
    inside, data = tmp_path / "deep" / "data", picture(tmp_path / "whole" / "a.png")
    inside.mkdir(parents=True)
    (tmp_path / "deep" / "secret.png").write_bytes(data)
    with tarfile.open(inside / "x-000.tar", "w") as tar:

        def add(name, kind=tarfile.REGTYPE, content=b"", link=""):
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), link
            tar.addfile(info, io.BytesIO(content))

        add("good.png", content=data)
        add("good.txt", content=b"good")
        for number, name in enumerate(OUT):
            add(name, content=data)
            add(name.replace("png", "txt"), content=b"%d" % number)
        for name, kind in (("sym", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            add(f"{name}.png", kind, link="../secret.png")
            add(f"{name}.txt", content=b"a link")
        add("dir", tarfile.SYMTYPE, link="..")
        add("dir/evil.png", content=data)
        add("dir/evil.txt", content=b"through a link")
        for name, kind in (("null", tarfile.CHRTYPE), ("disk", tarfile.BLKTYPE), ("pipe", tarfile.FIFOTYPE)):
            add(f"{name}.png", kind)
            add(f"{name}.txt", content=b"a device")
    return inside


def test_shards_are_never_unpacked(slipped, tmp_path):
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    found = PairShards.open(slipped)
    samples = list(found.stream(seed=0, epoch=0))
    captions = {text for sample in samples for text in sample.captions}
    assert captions == {"good", "through a link", *"01235"}  # names are keys and nothing more
    assert {skip.reason for skip in found.skipped} == {"no picture"}  # links and devices are no pictures
    after = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    assert set(after) - set(before) == {(slipped / ".avse-shards.json").relative_to(tmp_path)}


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_compressed_shards_are_not_unpacked(tmp_path, pack):
    bomb = pack(bytes(50 << 20))
    assert len(bomb) < 100_000
    (tmp_path / "x-000.tar").write_bytes(bomb)
    with pytest.raises(ShardError, match="a whole tar file that is not compressed"):
        PairShards.open(tmp_path)


@pytest.mark.parametrize("name", ["../x-000.tar", "/x-000.tar", "a/../../x-000.tar", "..\\x-000.tar", "", "."])
def test_a_list_of_shards_that_leads_out(tmp_path, name):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "x-000.tar").write_bytes(bytes(1024))
    said = {"shards": [{"name": name, "count": 1, "bytes": 1024, "sha256": "0" * 64}], "counts": {}}
    (folder / "shards.json").write_text(json.dumps(said))
    with pytest.raises(ShardError, match=r"shards.json: expected names of shards in its folder|expected 1,024 bytes"):
        PairShards.open(folder)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("dpkg"), reason="dpkg")
@pytest.mark.parametrize("how", ["name", "absolute", "link"])
def test_a_package_that_leads_out_of_its_folder(tmp_path, how):
    """`dpkg -x` refuses or strips such names, and makes links only when all else is unpacked."""
    out, outside = tmp_path / "out", tmp_path / "outside"
    out.mkdir(), outside.mkdir()
    data, control = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        if how == "link":
            info = tarfile.TarInfo("./dir")
            info.type, info.linkname = tarfile.SYMTYPE, str(outside)
            tar.addfile(info)
        info = tarfile.TarInfo({"name": "./../outside/evil", "absolute": f"{outside}/evil", "link": "./dir/evil"}[how])
        info.size = 1
        tar.addfile(info, io.BytesIO(b"x"))
    with tarfile.open(fileobj=control, mode="w") as tar:
        text = b"Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
        info = tarfile.TarInfo("./control")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    parts = {"debian-binary": b"2.0\n", "control.tar": control.getvalue(), "data.tar": data.getvalue()}
    with open(tmp_path / "x_1.deb", "wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in parts.items():
            stream.write(f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content)
            stream.write(b"\n" * (len(content) % 2))
    try:
        unpack_package(tmp_path / "x_1.deb", out)
    except DebianError as error:
        assert "dpkg -x x_1.deb failed" in str(error)
    assert list(outside.iterdir()) == []


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: !!python/object/apply:os.system ['touch MARK']", "could not determine a constructor"),
        ("train: !!python/object/new:os.system [touch MARK]", "could not determine a constructor"),
        ("train: !!python/name:os.system", "could not determine a constructor"),
        (LAUGHS + "train: {lr: *a11}", "an alias .* neither is read"),
        ("train: &a {lr: *a}", "an alias .* neither is read"),
        ("[" * 5000, "not readable as YAML.*more than 50 levels"),
        ("base: /etc/passwd", "not readable as YAML|expected a mapping"),
    ],
)
def test_settings_that_do_harm(tmp_path, mark, text, message):
    began = time.monotonic()
    (tmp_path / "r.yaml").write_text(text.replace("MARK", str(mark)))
    with pytest.raises(ConfigError, match=message) as error:
        load_recipe(tmp_path / "r.yaml")
    assert time.monotonic() - began < 10 and len(str(error.value)) < 1000
    if text.startswith("train: !!"):
        with pytest.raises(ConfigError, match=message):
            change(load_recipe("demo"), ["train.lr=" + text.removeprefix("train: ").replace("MARK", str(mark))])


def test_conditions_are_read_in_linear_time():
    """No pattern is taken from a condition, its length is bounded, and its own patterns cannot run wild."""
    payload = {"a": "x" * 100_000, "d": "2019-06-01T" + "0" * 100_000}
    texts = ["a in (" + ",".join(["1"] * 480) + ")", '"' + "\\\\" * 490, "'" * 999, "!" * 999, " " * 1000]
    texts += ["a = '" + "a" * 990, "d > '2019-06-01T00:00:00." + "0" * 900 + "'", "not " * 49 + "a = (a+)+$"]
    began = time.monotonic()
    for text in texts:
        try:
            matches(parse(text), payload)
        except ValueError:
            pass
    assert time.monotonic() - began < 1


@pytest.mark.skipif(sys.platform == "win32", reason="symbolic links")
def test_a_model_may_be_a_folder_of_links(tmp_path, request):
    """The hub's cache is one; what a link leads to is checked against the manifest as any file."""
    whole, folder = tiny_model(request), tmp_path / "model"
    for path in whole.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(whole)).parent.mkdir(parents=True, exist_ok=True)
            (folder / path.relative_to(whole)).symlink_to(path)
    assert open_model(folder).fingerprint == open_model(whole).fingerprint
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/etc/passwd")
    with pytest.raises(files.ManifestError, match="config.json"):
        open_model(folder)


def test_deep_json_is_an_error_and_no_end_of_the_stack(tmp_path):
    deep = "[" * 100_000
    code = "import sys; from avse.files import verify_manifest; verify_manifest(sys.argv[1])"
    (tmp_path / "manifest.json").write_text(deep)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "ManifestError" in done.stderr.splitlines()[-1]
