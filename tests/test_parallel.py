"""Processes that train together: gradients and statistics of 2 and 4 (gloo) equal one's; collectives, order, failures.

The single process is the oracle: each worker computes the whole batch alone before it joins the others.
"""

import os
import socket
import time
import traceback

import numpy as np
import pytest
import torch
from torch import nn

import warm
from avse import parallel
from avse.heads import ImageHead, TextHead, TokenBatchNorm, unit_blocks
from avse.losses import CrossViewDecorrelationLoss, HardNegativeTripletLoss, InfoNCE, true_matches
from avse.scoring import aeom

SHARES = {2: ((4, 3), (7, 0)), 4: ((4, 3, 2, 1), (5, 0, 4, 1))}
GRID, VIEWS, KEEP, LENGTH, WIDTH, D, C = 6, 2, 4, 7, 8, 8, 4
OBJECTIVES = {
    "all negatives": (("all", 1.0),),
    "hardest negatives": (("hardest", 1.0),),
    "infonce": (("infonce", 1.0),),
    "infonce and L_reg": (("infonce", 1.0), ("correct", 0.1)),
    "hardest and official L_reg": (("hardest", 1.0), ("official", 0.1)),
    "everything": (("all", 0.3), ("hardest", 1.0), ("infonce", 2.0), ("correct", 0.1), ("official", 0.01)),
}
CHECKS = (
    "gather",
    "gather in half precision",
    "total",
    "average gradients",
    "objects",
    "broadcast parameters",
    "main first",
    "float64 gradients",
    "float32 gradients",
    "batch norm in half precision",
    "unmasked batch norm needs one length",
    "too few tokens",
    "a process that ends is told of",
)


class Small(nn.Module):
    """Linear encoders, the real heads, the losses."""

    def __init__(self, masked):
        super().__init__()
        self.image_encoder, self.text_encoder = nn.Linear(5, WIDTH), nn.Linear(4, WIDTH)
        self.image_head, self.text_head = ImageHead(WIDTH, D), TextHead(WIDTH, D, 0.0, masked)
        self.infonce = InfoNCE(0.5, learnable=True)

    def loss(self, batch, parts):
        """The loss of the batch of every process, and its scores and matches."""
        views = self.image_head.forward_views(self.image_encoder(batch["grid"]), batch["views"])
        texts = self.text_head(self.text_encoder(batch["tokens"]), batch["mask"])
        blocks = unit_blocks(nn.functional.normalize(views, dim=-1), C), unit_blocks(texts, C)
        views, images, texts = parallel.gather(views), *map(parallel.gather, blocks)
        ids = sum(parallel.gather_objects(batch["ids"]), [])
        matches = true_matches(ids, sum(parallel.gather_objects(batch["texts"]), []))
        scores = aeom(images, texts)
        losses = {
            "all": lambda: HardNegativeTripletLoss(0.2, hardest=False)(scores, matches),
            "hardest": lambda: HardNegativeTripletLoss(0.2)(scores, matches),
            "infonce": lambda: self.infonce(scores, matches),
            "correct": lambda: CrossViewDecorrelationLoss()(views),
            "official": lambda: CrossViewDecorrelationLoss(form="official")(views),
        }
        return sum(weight * losses[name]() for name, weight in parts), scores, matches


def whole_batch(size, dtype, seed):
    """A batch in which the first and the last pair share their image, and two others their text."""
    torch.manual_seed(seed)
    lengths = torch.randint(1, LENGTH, (size,))
    lengths[0] = LENGTH
    names = [f"text {i}" for i in range(size)]
    names[1], names[-2] = "a  Dog", "a dog"
    return {
        "grid": torch.randn(size, GRID, 5).to(dtype),
        "views": torch.rand(size, VIEWS, GRID).argsort(dim=-1)[..., :KEEP],
        "tokens": torch.randn(size, LENGTH, 4).to(dtype),  # the padding too: encoders give it values
        "mask": (torch.arange(LENGTH) < lengths[:, None]).long(),
        "ids": [*range(size - 1), 0],
        "texts": names,
    }


def share_of(batch, sizes, rank, cut):
    """The rows of one process, padded to its own longest text where `cut`."""
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    share = {name: value[rows] for name, value in batch.items()}
    longest = int(share["mask"].sum(dim=1).max()) if cut and sizes[rank] else LENGTH
    return {**share, "tokens": share["tokens"][:, :longest], "mask": share["mask"][:, :longest]}


def hardest_lead(scores, matches):
    """By how much each query's hardest negative leads the second: the smallest over the 2·B queries."""
    negatives = scores.detach().masked_fill(matches, -100.0)
    leads = [part.topk(2, dim=1).values for part in (negatives, negatives.T)]
    return min(float((top[:, 0] - top[:, 1]).min()) for top in leads)


def gradients(size, dtype, name, masked, sizes=None, rank=0):
    """Gradients and statistics by name: of the whole batch in one process, or of a process's share."""
    batch = whole_batch(size, dtype, seed=38)
    torch.manual_seed(1)
    model = Small(masked).to(dtype)
    loss, scores, matches = model.loss(share_of(batch, sizes, rank, masked) if sizes else batch, OBJECTIVES[name])
    assert int(matches.sum()) == size + 4  # the shared image and the shared text are no negatives
    assert hardest_lead(scores, matches) > 1e-3
    loss.backward()
    parallel.average_gradients(model.parameters())
    found = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    return {"loss": loss.detach(), **found, **dict(model.named_buffers())}


def cases(world, dtype):
    names = OBJECTIVES if dtype == torch.float64 else ("everything",)
    return [(sum(sizes), dtype, name, masked, sizes) for sizes in SHARES[world] for name in names for masked in (1, 0)]


def compare(expected, found, relative):
    """Each to its own largest entry; the bias before the batch norm, whose gradient is rounding, to that of all."""
    assert expected.keys() == found.keys()
    everything = max(float(value.abs().max()) for key, value in expected.items() if "running" not in key)
    for key, value in expected.items():
        scale = everything if key == "text_head.mlp.0.bias" else float(value.abs().max())
        assert float((found[key] - value).abs().max()) <= relative * scale, (key, found[key], value)


# What a worker runs. Each of these knows `rank` and `world`.
def check_gather(rank, world):
    for dtype in (torch.float64, torch.float32):
        own = torch.full((rank, 2), float(rank), dtype=dtype, requires_grad=True)  # process 0 has no row
        joined = parallel.gather(own)
        expected = [float(r) for r in range(world) for _ in range(r)]
        assert joined[:, 0].tolist() == expected and joined.dtype == dtype
        weights = torch.arange(1.0, joined.numel() + 1, dtype=dtype).reshape(joined.shape) * (rank + 1)
        (joined * weights).sum().backward()
        first = sum(range(rank))
        both = weights / (rank + 1) * sum(range(1, world + 1))  # every process's weights
        assert torch.equal(own.grad, both[first : first + rank])
    assert parallel.gather(torch.tensor([rank])).tolist() == list(range(world))
    assert parallel.gather(torch.ones(0, 3)).shape == (0, 3)
    turned = torch.arange(6.0).reshape(2, 3).T
    assert torch.equal(parallel.gather(turned), torch.cat([turned] * world))


def check_gather_in_half_precision(rank, world):
    for dtype in (torch.bfloat16, torch.float16):
        own = torch.full((rank + 1, 3), 0.3, dtype=dtype, requires_grad=True)
        joined = parallel.gather(own)
        assert joined.dtype == dtype and len(joined) == sum(range(1, world + 1))
        (joined * (256 if rank else 1)).sum().backward()
        assert own.grad.dtype == dtype and (own.grad == torch.tensor(1 + 256 * (world - 1)).to(dtype)).all()


def check_total(rank, world):
    own = torch.full((2, 2), rank + 1.0, dtype=torch.float64, requires_grad=True)
    everything = parallel.total(own.T)
    assert (everything == sum(range(1, world + 1))).all()
    (everything * (rank + 1)).sum().backward()
    assert (own.grad == sum(range(1, world + 1))).all()
    assert parallel.total(torch.tensor(3)).item() == 3 * world


def check_average_gradients(rank, world):
    kinds = (torch.float32, torch.float64, torch.bfloat16)
    parameters = [nn.Parameter(torch.zeros(3, n + 1, dtype=kinds[n % 3])) for n in range(12)]
    parameters[3].requires_grad_(False)
    for number, parameter in enumerate(parameters):
        held = number not in (3, 5) and not (number % 4 == 2 and rank == 0)  # 5 has none anywhere, 2, 6, 10 not on 0
        parameter.grad = torch.full_like(parameter, number + rank) if held else None
    everywhere = parallel.gather_objects([None if p.grad is None else p.grad.double() for p in parameters])
    size, parallel.BUCKET = parallel.BUCKET, 64
    parallel.average_gradients(iter(parameters))
    parallel.BUCKET = size
    for number, parameter in enumerate(parameters):
        parts = [part[number] for part in everywhere if part[number] is not None]
        if not parts:
            assert parameter.grad is None
            continue
        assert parameter.grad.dtype == parameter.dtype and parameter.grad.shape == parameter.shape
        assert torch.allclose(parameter.grad.double(), sum(parts) / world, rtol=2e-2 if number % 3 == 2 else 1e-6)
    parallel.average_gradients([])


def check_objects(rank, world):
    assert (parallel.world(), parallel.rank(), parallel.is_main()) == (world, rank, rank == 0)
    assert parallel.gather_objects({"rank": rank}) == [{"rank": r} for r in range(world)]
    assert parallel.broadcast_object(rank) == 0 and parallel.broadcast_object(rank, 1) == 1
    assert parallel.any_rank(rank == world - 1) and not parallel.any_rank(False)


def check_broadcast_parameters(rank, world):
    torch.manual_seed(rank)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].weight = nn.Parameter(torch.randn(3, 2).T)  # not contiguous
    model[1].num_batches_tracked.fill_(rank)
    parallel.broadcast_parameters(model)
    states = parallel.gather_objects(model.state_dict())
    assert all(torch.equal(value, states[0][key]) for state in states for key, value in state.items())
    torch.manual_seed(0)
    nn.Linear(3, 2)
    assert torch.equal(model[0].weight, torch.randn(3, 2).T)


def check_main_first(rank, world):
    events = []
    with parallel.main_first():
        if rank == 0:
            time.sleep(0.2)
        events.append(time.monotonic())
    starts = parallel.gather_objects(events[0])
    assert min(starts[1:]) > starts[0]
    error = OSError if rank == 0 else parallel.ParallelError
    with pytest.raises(error, match="no space left"), parallel.main_first():
        if rank == 0:
            raise OSError("no space left")
        raise AssertionError("the others must not go on")
    parallel.gather_objects(None)


def check_batch_norm_in_half_precision(rank, world):
    rows = [torch.full((r, 3), 1000.0 * r).bfloat16() for r in range(world + 1)]
    mine, theirs = TokenBatchNorm(3), nn.BatchNorm1d(3)
    expected = theirs(torch.cat(rows[1:]).float())
    first = sum(range(rank + 1))
    found = mine(rows[rank + 1])
    assert found.dtype == torch.bfloat16
    assert torch.allclose(found.float(), expected[first : first + rank + 1], rtol=1e-2)
    assert all(torch.allclose(value, theirs.state_dict()[key]) for key, value in mine.state_dict().items())


def check_unmasked_batch_norm_needs_one_length(rank, world):
    model = Small(masked=False)
    share = share_of(whole_batch(2 * world, torch.float32, 0), [2] * world, rank, cut=False)
    share["tokens"], share["mask"] = share["tokens"][:, rank:], share["mask"][:, rank:]
    with pytest.raises(ValueError, match="pad their texts to .* one length"):
        model.loss(share, OBJECTIVES["infonce"])
    model.eval()  # evaluation looks at nobody
    model.text_head(model.text_encoder(share["tokens"]), share["mask"] | 1)


def check_too_few_tokens(rank, world):
    head = TextHead(WIDTH, D, 0.0)
    with pytest.raises(ValueError, match="1 token in the whole batch"):
        head(torch.zeros(int(rank == 1), 1, WIDTH), torch.ones(int(rank == 1), 1))


def check_a_process_that_ends_is_told_of(rank, world):
    if rank == 1:
        return
    with pytest.raises(parallel.ParallelError, match=f"process {rank} of {world} lost the others"):
        parallel.gather(torch.ones(1))


def worker(rank, world, port, folder):
    torch.set_num_threads(1)
    batches = {name: cases(world, getattr(torch, name)) for name in ("float64", "float32")}
    alone = {name: [gradients(*case[:4]) for case in found] for name, found in batches.items()}
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    assert parallel.start("cpu") == "cpu" == parallel.start("cpu")  # a second time joins nobody anew
    with pytest.raises(ValueError, match="cuda:1"):
        parallel.start("cuda:1")
    for name in CHECKS:
        kind = name.split(" ")[0]
        try:
            if name.endswith("t64 gradients") or name.endswith("t32 gradients"):
                for case, expected in zip(batches[kind], alone[kind]):
                    compare(expected, gradients(*case, rank=rank), 1e-9 if kind == "float64" else 1e-5)
            else:
                globals()[f"check_{name.replace(' ', '_')}"](rank, world)
            told = "passed"
        except BaseException:
            told = traceback.format_exc()
        (folder / f"{name} {rank}").write_text(told)
        if told != "passed":
            return  # the others are told that this one ended


@pytest.fixture(scope="module", params=[2, pytest.param(4, marks=pytest.mark.slow)])
def told(request, tmp_path_factory):
    """What each process of a group says of each check."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    warm.together(worker, (request.param, port, folder), request.param)
    return {
        name: [(folder / f"{name} {rank}").read_text() for rank in range(request.param)]
        for name in CHECKS
        if (folder / f"{name} 0").exists()
    }


@pytest.mark.parametrize("name", CHECKS)
def test_processes_together(told, name):
    found = told.get(name, ["not come to"])
    assert set(found) == {"passed"}, "\n".join(found)


def test_one_process_changes_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert parallel.start("cpu") == "cpu" and parallel.start("mps") == "mps"
    assert (parallel.world(), parallel.rank(), parallel.is_main()) == (1, 0, True)
    rows = torch.ones(2, 3)
    assert parallel.gather(rows) is rows and parallel.total(rows) is rows
    parameter = nn.Parameter(torch.zeros(1))
    parameter.grad = kept = torch.ones(1)
    parallel.average_gradients([parameter])
    assert parameter.grad is kept
    assert parallel.gather_objects(np.pi) == [np.pi] and parallel.broadcast_object("x") == "x"
    assert parallel.any_rank(True) and not parallel.any_rank(False)
    parallel.broadcast_parameters(nn.Linear(1, 1))
    parallel.gather_objects(None)
    with parallel.main_first():
        pass


def test_start_says_what_is_wrong(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="finds 0 GPUs"):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
        parallel.start("cuda")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(parallel.ParallelError, match="MASTER_ADDR"):
        parallel.start("cpu")
