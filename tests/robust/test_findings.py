"""What the neighbours of valid files once brought to light, each as the shortest file that did it."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib

import pytest
import torch
from PIL import Image
from robust_indexes import fill, use
from robust_kit import fault
from robust_records import write_rankings

from avse.calibration import Calibration, CalibrationError
from avse.checkpoint import CheckpointError, load_weights
from avse.cli.runs import flat, row_of
from avse.config import ConfigError, ImageEncoderConfig, ModelConfig, TextEncoderConfig, change, load_recipe, parse
from avse.data import load_dataset
from avse.data.debian import DebianError, unpack_package
from avse.data.shards import PairShards, ShardError
from avse.encoders import EncoderError, TextEncoder, build_text_encoder
from avse.encoders.base import transformer_config
from avse.files import ManifestError, verify_manifest, write_manifest
from avse.index import Index, StoreError
from avse.index.journal import Journal
from avse.index.segments import ROWS, Segments
from avse.model import AVSE
from avse.rankings import RankingsError, load_rankings
from avse.rowstore import RowStore
from avse.trainer.record import read_run
from avse.trainer.state import read_progress


def test_the_kit_sees_what_it_should_see(tmp_path):
    """Faults of every kind are told from proper errors; a fuzzer that sees nothing proves nothing."""

    def raises(error):
        def load():
            raise error

        return load

    family = (ValueError, OSError)
    assert fault(lambda: None, ("x",), family) is None
    assert fault(raises(ValueError("x: no")), ("x",), family) is None
    for error in (KeyError("x"), TypeError("x"), RecursionError("x"), MemoryError("x"), SystemExit("x")):
        assert type(error).__name__ in fault(raises(error), ("x",), family)
    assert "names no file" in fault(raises(ValueError("no")), ("x",), family)
    assert "2 lines" in fault(raises(ValueError("x\nno")), ("x",), family)
    assert "raw JSONDecodeError" in fault(lambda: json.loads("x"), (), family)
    assert "raw UnicodeDecodeError" in fault(lambda: b"\xff".decode(), (), family)
    assert "grew" in fault(lambda: bytearray(500 << 20), (), family)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("")
    assert "opened outside" in fault((tmp_path / "out" / "a").read_text, (), family, tmp_path / "out")


@pytest.mark.parametrize("text", ['z"words": []}', "[]", "[" * 100_000])
def test_a_vocabulary_that_is_none(tmp_path, text):
    build_text_encoder(TextEncoderConfig(source="bigru", min_count=1, vectors=None), ["a dog"]).save(tmp_path)
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(EncoderError, match="vocabulary.json: "):
        TextEncoder.from_saved(tmp_path)
    for words, width in ((["<pad>", [0]], 300), (["<pad>", "<unk>"], [300]), (["<pad>"], 10**12), (None, 3)):
        (tmp_path / "vocabulary.json").write_text(json.dumps({"words": words, "vector_width": width}))
        with pytest.raises(EncoderError, match=str(tmp_path)):
            TextEncoder.from_saved(tmp_path)


def test_sizes_that_would_fill_the_memory(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 2**40}))
    with pytest.raises(EncoderError, match="hidden_size 1,099,511,627,776, more than 5,000,000"):
        transformer_config(tmp_path)
    with pytest.raises(ConfigError, match="embed_dim: .*65536"):
        parse(ModelConfig, {"embed_dim": 2**40})
    fill(tmp_path / "i", store="memory")
    (tmp_path / "i/memory/state.json").write_text('{"rows": 2147483648, "journal_bytes": 835, "generation": 0}')
    with pytest.raises(StoreError, match="memory is damaged"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize("generation", ["/../../x", -1.5, None])
def test_a_state_that_names_other_files(tmp_path, generation):
    fill(tmp_path / "i", store="memory")
    state = json.loads((tmp_path / "i/memory/state.json").read_text())
    (tmp_path / "i/memory/state.json").write_text(json.dumps({**state, "generation": generation}))
    with pytest.raises(StoreError, match="memory is damaged .*whole numbers are wanted"):
        use(tmp_path / "i")


@pytest.mark.parametrize(
    ("said", "damaged"),
    [
        ({"best_epoch": [0]}, ["best_epoch"]),
        ({"identity": {"config": [0], "model": {"image_encoder": 1}}}, ["identity.config", "identity.model.image_enc"]),
        ({"identity": []}, ["identity"]),
        ({"identity": "x", "seconds": 3}, ["identity", "seconds"]),
        ({"seconds": {"train": {}}}, ["seconds.train"]),
        ({"data": {"train": 1}, "hardware": 3, "best": {"i2t": 1}}, ["best.i2t", "data.train", "hardware"]),
    ],
)
def test_a_record_of_other_kinds_is_shown_and_said_to_be_damaged(tmp_path, said, damaged):
    entry = {"epoch": 0, "val": {"rsum": 1.0}}
    (tmp_path / "run.json").write_text(json.dumps({"status": "finished", **said}))
    (tmp_path / "history.json").write_text(
        json.dumps([entry, {"epoch": {}, "val": {"rsum": 2}}, {"epoch": 1, "val": []}])
    )
    found = read_run(tmp_path)
    row = row_of("x", found)
    assert row["status"] == "finished" and flat(found["identity"]) is not None
    told = found["problem"].split("; ")
    assert len(told) == len(damaged), told
    assert all(problem.startswith(name) and "is damaged: " in problem for problem, name in zip(told, damaged)), told


@pytest.mark.parametrize(
    "line", [b"[]", b'{"done": "x", "skips": []}', b'{"done": 2, "rows": 2, "skips": []}', b"{3", b"\xff"]
)
def test_lines_of_a_cache_with_right_checksums_and_wrong_content(tmp_path, line):
    store = RowStore(tmp_path / "s", {}, 2)
    store.verify()
    store.cut()
    store.append(2, b"abcd", {})
    journal = tmp_path / "s/journal.txt"
    journal.write_bytes(journal.read_bytes() + b"%08x %s\n" % (zlib.crc32(line), line))
    assert not RowStore(tmp_path / "s", {}, 2).verify()


def test_an_array_whose_header_does_not_end(tmp_path):
    array = b"\x93NUMPY\x01\0\x04\0{'a'"
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("header.npy", array)
    with pytest.raises(RankingsError, match="x.npz: not a whole rankings file"):
        load_rankings(tmp_path / "x.npz")


def test_rankings_whose_header_lies(tmp_path):
    path = write_rankings(tmp_path / "r", "parquet")
    data = path.read_bytes()
    path.write_bytes(data[:40] + b"\xff" * 8 + data[48:])
    with pytest.raises(RankingsError) as error:
        load_rankings(path)
    assert "\n" not in str(error.value)


def test_half_a_character_in_a_caption_is_named_by_line(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"image": "a.png", "captions": ["a \\ud800"]}')
    with pytest.raises(ValueError, match=r"captions.jsonl:1: half a character .*a .ud800"):
        load_dataset(tmp_path, split="all")


@pytest.mark.parametrize(
    "text",
    ["file_name,text,split\na.png,one,train\n%s,two,\n" % ("b" * 5000), "file_name,te%s\na.png,one\n" % ("x" * 5000)],
)
def test_long_names_in_metadata_are_cut_in_messages(tmp_path, text):
    pytest.importorskip("datasets")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(ValueError, match="no split|one column of captions") as error:
        load_dataset(tmp_path)
    assert len(str(error.value)) < 800


def test_long_values_are_cut_in_messages(tmp_path):
    (tmp_path / "captions.csv").write_text("1" * 5000 + "image,caption\na,b\n")
    with pytest.raises(ValueError) as error:
        load_dataset(tmp_path)
    assert len(str(error.value)) < 400
    with pytest.raises(ConfigError) as error:
        change(load_recipe("demo"), ["train.lr=" + "1" * 10_000])
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "text", ["", "[]", '{"best_rsum": null, "epoch": "x"}', '{"best_rsum": 1, "speed": 3}', "[" * 100_000]
)
def test_progress_that_is_none(tmp_path, text):
    (tmp_path / "progress.json").write_text(text)
    with pytest.raises(ValueError, match="progress.json: not the progress of a training"):
        read_progress(tmp_path / "progress.json")


def test_a_calibration_of_infinite_sizes():
    side = {"sizes": [float("inf")], "thresholds": [0.1], "slope": 1, "intercept": 0, "recall": 1, "questions": 20}
    with pytest.raises(CalibrationError, match="not whole"):
        Calibration.from_dict({"format": 1, "t2i": side, "i2t": side, "false_accepts": 0.05, "facts": {}})


def test_a_list_of_no_shards(tmp_path):
    (tmp_path / "shards.json").write_text('{"shards": [], "counts": {"pairs": 0}}')
    with pytest.raises(ShardError, match="expected the names of shards.*none") as error:
        PairShards.open(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_saved_tokenizer_that_does_not_fit_is_named_by_its_own_folder(tmp_path, tiny_bert_folder):
    build_text_encoder(TextEncoderConfig(source=str(tiny_bert_folder))).save(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_max_length": 1}))
    with pytest.raises(EncoderError, match=f"^{tmp_path}: .* takes at most 1 tokens"):
        TextEncoder.from_saved(tmp_path)


@pytest.mark.parametrize("name", ["a\ud800", "a\nb", "x" * 9000])
def test_a_manifest_and_weights_with_names_of_none(tmp_path, name):
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {name: {"sha256": "0" * 64, "bytes": 0}}}))
    with pytest.raises(ManifestError, match=r"manifest.json: expected paths inside the folder, found '") as error:
        verify_manifest(tmp_path)
    assert len(str(error.value).replace(str(tmp_path), "")) < 200 and "\n" not in str(error.value)
    with pytest.raises(CheckpointError, match=r"w.safetensors: weights do not fit.* is missing") as error:
        load_weights(torch.nn.Linear(2, 1), {name: torch.ones(1)}, tmp_path / "w.safetensors")
    assert len(str(error.value)) < 600 and "\n" not in str(error.value)


@pytest.mark.parametrize("digest", ["a\nb", "0" * 63, "A" * 64, 7])
def test_a_digest_that_is_none(tmp_path, digest):
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "manifest.json").write_text(json.dumps({"files": {"a": {"sha256": digest, "bytes": 0}}}))
    with pytest.raises(ManifestError, match="a manifest with size and sha256 of each file"):
        verify_manifest(tmp_path)


def test_half_a_character_in_a_models_configuration(tmp_path, tiny_vit_folder, tiny_bert_folder):
    image, text = ImageEncoderConfig(source=str(tiny_vit_folder)), TextEncoderConfig(source=str(tiny_bert_folder))
    model = AVSE(ModelConfig(image_encoder=image, text_encoder=text, embed_dim=16, block_width=8))
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config["image_encoder"]["source"] = "\ud800"
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    shutil.move(tmp_path / "model" / "manifest.json", tmp_path / "old.json")
    write_manifest(tmp_path / "model", {"fingerprint": json.loads((tmp_path / "old.json").read_text())["fingerprint"]})
    with pytest.raises(CheckpointError, match=r"config.json: .*surrogates not allowed"):
        AVSE.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize("name", ["a\nb", "x" * 9000, "a\\b", "../a"])
def test_a_list_of_shards_with_names_of_none(tmp_path, name):
    shard = {"name": name, "count": 1, "bytes": 10240, "sha256": "0" * 64}
    (tmp_path / "shards.json").write_text(json.dumps({"shards": [shard], "counts": {"pairs": 1}}))
    with pytest.raises(ShardError, match="expected names of shards in its folder") as error:
        PairShards.open(tmp_path)
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="a machine of Debian")
def test_a_package_of_which_dpkg_says_no_utf8(tmp_path):
    """dpkg repeats a damaged header's bytes as they are."""
    header = b"debian-binary   17.5795389  0     0     100644  \xd9         `\n"
    (tmp_path / "x.deb").write_bytes(b"!<arch>\n" + header + b"2.0\n")
    with pytest.raises(DebianError, match="dpkg -x x.deb failed"):
        unpack_package(tmp_path / "x.deb", tmp_path)


def test_metadata_on_which_pyarrow_ends_the_process(tmp_path):
    """In a process of its own: pyarrow 26 reads this with a segmentation fault."""
    pytest.importorskip("datasets")
    line = '{"file_name": "b.png", "text": "two", "sp%s'
    (tmp_path / "metadata.jsonl").write_text(
        "null" + (line % "lit")[3:] + "\n" + line % "litnull" + "\n" + line % "null"
    )
    code = f"from avse.data import load_dataset\nload_dataset({str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 1 and f"ValueError: {tmp_path / 'metadata.jsonl'}:1: not JSON" in ended.stderr


def test_an_endless_id_is_cut_in_the_message(tmp_path):
    (tmp_path / "id_mapping.json").write_text('{"1": "a.png"}')
    (tmp_path / "test_ids.txt").write_text("x" * 200_000 + "\n")
    (tmp_path / "test_caps.txt").write_text("one\n" * 5)
    with pytest.raises(ValueError, match="test_ids.txt:1: the id .*x.* is none of the 1 ids") as error:
        load_dataset(tmp_path, split="test")
    assert len(str(error.value)) < 1000


def test_embeddings_whose_parts_are_no_arrays(tmp_path):
    """numpy's reader of headers raises what tokenize raises; a table's reader speaks in two lines."""
    from avse.export.embeddings import read_embeddings

    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        for name in ("side", "P", "Q", "C", "fingerprint", "model", "avse", "blocks", "ids", "payloads"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\0\x04\0{'a'")
    with pytest.raises(ValueError, match="x.npz: no embeddings .* wrote, or damaged"):
        read_embeddings(tmp_path / "x.npz")


def test_a_line_of_an_index_that_nests_without_end(tmp_path):
    fill(tmp_path / "i", store="memory")
    lines = tmp_path / "i/memory/rows.jsonl"
    data = lines.read_bytes()
    at = data.index(b'"0.png"')
    lines.write_bytes(data[:at] + b"[" * 100_000 + data[at:])
    with pytest.raises(StoreError, match="memory is damaged .*recursion"):
        Index.open(tmp_path / "i")


@pytest.mark.parametrize(
    "kept",
    [
        '{"x-000000.tar": [Infinity, 0, 1, []]}',
        '{"\\ud800": [10240, 1, 1, []]}',
        '{"x-000000.tar": ' + "[" * 100_000,
    ],
)
def test_counts_of_shards_that_are_damaged_are_made_anew(tmp_path, kept):
    with tarfile.open(tmp_path / "x-000000.tar", "w") as tar:
        for name, data in (("a.jpg", b"no picture yet"), ("a.txt", b"a dog")):
            facts = tarfile.TarInfo(name)
            facts.size = len(data)
            tar.addfile(facts, io.BytesIO(data))
    (tmp_path / ".avse-shards.json").write_text(kept)
    assert PairShards.open(tmp_path).num_images == 1
    assert json.loads((tmp_path / ".avse-shards.json").read_text()).keys() == {"x-000000.tar"}


@pytest.mark.parametrize(
    "change",
    [
        {"version": "a\nb"},
        {"model": "\ud800"},
        {"format": "x" * 9000},
        {"replicas": "a\nb"},
        {"fingerprint": "a\nb"},
        {"num_image_blocks": True},
        {"num_text_blocks": 2**63},
        {"fingerprint": "x" * 9000},
        {"source": "x" * 9000},
        {"source": "a\0b"},
        {"store": ["x" * 9000]},
        "[" * 100_000,
    ],
)
def test_a_manifest_of_an_index_that_says_odd_things(tmp_path, change):
    fill(tmp_path / "i", store="memory")
    path = tmp_path / "i/index.json"
    path.write_text(change if isinstance(change, str) else json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(StoreError) as error:
        Index.open(tmp_path / "i")
    assert len(str(error.value)) < 600 and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


@pytest.mark.parametrize("size", ["a\nb", "x" * 9000])
def test_sizes_of_the_engines_files_that_are_none(tmp_path, size):
    fill(tmp_path / "i", store="embedded")
    [path] = tmp_path.rglob("closed.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "edge_config.json": size}))
    with pytest.raises(StoreError, match="closed.json is damaged .names of files and their bytes are wanted") as error:
        Index.open(tmp_path / "i")
    assert len(str(error.value)) < 700 and "\n" not in str(error.value)


@pytest.mark.parametrize("payload", [b"7", b"[" * 100_000])
def test_a_payload_of_another_kind_with_a_right_checksum(tmp_path, payload):
    fill(tmp_path / "i", store="memory")
    lines = tmp_path / "i/memory/rows.jsonl"
    first, rest = lines.read_bytes().split(b"\n", 1)
    text = first[9 : first.index(b" {")] + b" " + payload.ljust(len(first) - first.index(b" {") - 1)
    lines.write_bytes(b"%08x %s\n" % (zlib.crc32(text), text) + rest)
    state = json.loads((tmp_path / "i/memory/state.json").read_text())
    state["journal_bytes"] = lines.stat().st_size
    (tmp_path / "i/memory/state.json").write_text(json.dumps(state))
    with Index.open(tmp_path / "i") as index, pytest.raises(StoreError, match=r"entry .*0\.png.* is damaged"):
        list(index.entries())


def test_settings_of_which_nearly_all_are_wrong_are_not_all_told():
    with pytest.raises(ConfigError, match="; and 12 more$") as error:
        parse(ModelConfig, {f"key{number}": 1 for number in range(20)})
    assert str(error.value).count("key") < 20


@pytest.mark.parametrize("name", [b"indexdirty_contents", b"tablecontents"])
def test_a_journal_whose_tables_have_names_in_no_encoding(tmp_path, name):
    path = tmp_path / "journal.sqlite"
    Journal(path).close()
    data = path.read_bytes()
    path.write_bytes(data.replace(name, b"\xff" + name[1:]))
    assert path.read_bytes() != data
    with pytest.raises(StoreError, match=r"journal.sqlite: .*a damaged journal may be deleted"):
        Journal(path, anew=False)
    made = Journal(path)
    assert made.count() == 0
    made.close()
    assert path.read_bytes() == data


@pytest.mark.parametrize("segments", ["[[Infinity, Infinity]]", "[" * 100_000])
def test_a_table_of_int8_copies_that_is_damaged_counts_as_none(tmp_path, segments):
    (tmp_path / "v").write_bytes(bytes(4 * 8 * ROWS))
    (tmp_path / "t").write_text(f'{{"rows": {ROWS}, "segments": {segments}}}')
    assert not Segments(tmp_path / "v", tmp_path / "t", (4, 8))._entries
