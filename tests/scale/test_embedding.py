"""Embedding on a Ray cluster: the same rows as here, every picture once, also when a machine dies in the middle."""

import io
import socket
import sys

import numpy as np
import pytest
from PIL import Image

from avse.images import list_images
from avse.index import Index, Skipped
from avse.index.pictures import Picture
from avse.scale import embed_with_ray, embedding

PICTURES, BROKEN = 320, {20, 71, 122, 173, 224, 275, 319}
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config):
    """A saved model of P, Q, C = 4, 2, 8."""
    import torch

    from avse.model import AVSE

    torch.manual_seed(0)
    return AVSE(tiny_config).save_pretrained(tmp_path_factory.mktemp("scale") / "model")


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    """A folder of pictures that take a while to decode, twelve with different tails; some are cut short."""
    root, random, kinds = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0), []
    for _ in range(12):
        colours = Image.fromarray(random.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        with io.BytesIO() as stream:
            colours.resize((1600, 1200)).save(stream, "png", compress_level=1)
            kinds.append(stream.getvalue())
    for number in range(PICTURES):
        path = root / f"{number % 5}" / f"ü {number:03d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(kinds[number % 12][: 1000 if number in BROKEN else None] + str(number).encode())
    return root


@pytest.fixture
def cluster():
    """One machine, the driver's, which notices within seconds that another one died."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 1000, "health_check_timeout_ms": 3000, "health_check_failure_threshold": 3}
    made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False, "_system_config": quick})
    yield made
    made.shutdown()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="nowhere: no such model folder"):
        next(embed_with_ray(tmp_path / "nowhere", []))
    with socket.socket() as free, pytest.raises(OSError, match="no Ray cluster at 127.0.0.1:.*refused"):
        free.bind(("127.0.0.1", 0))  # bound and not listening
        next(embed_with_ray(tmp_path, [], address=f"127.0.0.1:{free.getsockname()[1]}"))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "avse\[ray\]"'):
        next(embed_with_ray(tmp_path, []))


@pytest.mark.slow
def test_a_machine_killed_in_the_middle_costs_no_picture(tmp_path, monkeypatch, folder, collection, cluster):
    import ray
    from qdrant_client import QdrantClient

    from avse.index import server
    from avse.start import open_model

    def embed(todo):
        doomed = cluster.add_node(**NODE)
        for number, part in enumerate(embed_with_ray(folder, todo, address=cluster.address, batch_size=8)):
            came.extend(part)
            yield part
            if number == 0:
                machines.append(sum(node["Alive"] for node in ray.nodes()))
                cluster.remove_node(doomed, allow_graceful=False)
                machines.append(len(came))

    client = QdrantClient(":memory:")
    monkeypatch.setattr(client, "close", lambda: None)
    monkeypatch.setattr(server, "connect", lambda address: client)
    model = open_model(folder)
    paths = {path.relative_to(collection).as_posix(): path for path in list_images(collection)}
    whole = [name for name in paths if int(name[-7:-4]) not in BROKEN]
    expected = model.encode_images([paths[name] for name in whole])
    asked = []
    for place, shards in ((tmp_path / "i.avse", 3), ("qdrant://localhost/photos", 2)):
        came, machines = [], []
        with Index.create(place, folder, shards=shards) as index:
            report = index.add_images(collection, embed=embed, progress=False)
            assert machines[0] == 2 and machines[1] < PICTURES / 2, "it was killed too late"
            assert len(came) == PICTURES and report.added == len(index) == PICTURES - len(BROKEN)
            assert sorted(skip.name for skip in report.skipped) == sorted(set(paths) - set(whole))
            names, blocks, payloads = index.get(whole)
            assert names == whole and np.abs(blocks - expected).max() < 1e-6
            assert payloads[0]["width"] == 1600 and not list(index.verify())
            index.add_images(collection, embed=lambda todo: ([asked.append(n), Skipped(n, "no")][1:] for n, _ in todo))
            assert set(asked) <= set(paths) - set(whole) and len(index) == PICTURES - len(BROKEN)


@pytest.mark.slow
def test_a_cluster_of_its_own_in_two_runs_and_a_model_it_cannot_load(tmp_path, monkeypatch, folder, collection):
    import ray

    from avse.start import open_model

    monkeypatch.setattr(embedding, "_FIRST", 12)
    todo = [(path.name, path) for path in list_images(collection)[:21]] + [("gone", collection / "gone.png")]
    items = {item[0]: item for part in embed_with_ray(folder, iter(todo), batch_size=4, actors=1) for item in part}
    assert set(items) == {name for name, _ in todo} and not ray.is_initialized()
    assert items["gone"].reason == "no such file"
    pictures = [item for item in items.values() if isinstance(item, Picture)]
    rows = open_model(folder).encode_images([dict(todo)[item.id] for item in pictures])
    assert len(pictures) >= 20 and np.abs(np.stack([item.blocks for item in pictures]) - rows).max() < 1e-6
    with pytest.raises(RuntimeError, match="embedding with Ray failed: .*config"):
        list(embed_with_ray(tmp_path, todo))
    assert not ray.is_initialized()
