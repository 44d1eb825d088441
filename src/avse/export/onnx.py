"""Both encoders of a model as ONNX, checked through onnxruntime before the folder takes its name.

A folder holds image.onnx, text.onnx, text.int8.onnx where it was asked for, the tokenizer's file, export.json (what
goes in and comes out) and a manifest. Whoever reads it needs onnxruntime, numpy, Pillow and tokenizers, and neither
torch nor avse.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avse import __version__, checkpoint, files
from avse.data import PairDataset
from avse.encoders.bigru import WORD_PATTERN, BiGRU
from avse.encoders.text import TransformerText
from avse.evaluate import encode_inputs
from avse.export import ONNX, check_folder, quiet
from avse.export.graphs import ExportError, ImageGraph, TextGraph
from avse.extras import needs
from avse.inputs import open_inputs
from avse.metrics import retrieval_metrics
from avse.model import AVSE
from avse.scoring import aeom
from avse.texts import text_groups

IMAGE, TEXT, INT8, FACTS = "image.onnx", "text.onnx", "text.int8.onnx", "export.json"
TOKENIZER, VOCABULARY = "tokenizer.json", "vocabulary.json"
OPSET = 18
TOLERANCE = 1e-5
"""Largest difference of a score that an export may have from torch."""
SENTENCES = (
    "a",
    "a dog runs on a beach",
    "two red boats near a house, and a man who plays",
    "a small green bird sits on a tree above the river, while three women and a child look at it from the road " * 2,
    "",
)
"""What the text side is checked on: of very different lengths, in one batch and each alone."""
_ONE_FILE = 1_900_000_000
"""Bytes of weights that still stand in the .onnx file itself, which holds 2 GB; more go into a file beside it."""

Blocks = NDArray[np.float32]
Reader = Callable[[Sequence[str]], dict[str, NDArray[np.int64]]]


def export_onnx(
    model: AVSE, out: str | Path, *, int8: bool = False, data: PairDataset | None = None, force: bool = False
) -> dict[str, Any]:
    """Write both encoders of a model as ONNX into a folder of their own.

    Args:
        model: on the CPU.
        out: the folder.
        int8: also quantise the text side (dynamic, weights int8) and measure what that loses.
        data: a split to measure it on; without, scores on made sentences and pixels alone.
        force: replace an ONNX export that is there.

    Returns:
        What export.json holds: opset, inputs, shapes, tokenizer, largest differences from torch.

    Raises:
        ExportError: a part that cannot be exported, or scores that differ from torch by more than `TOLERANCE`.
        ImportError: a package is missing.
        FileExistsError, ValueError: as `check_folder`.
    """
    check_packages()
    check_folder(out, ONNX, force, model.folder)
    training = model.training
    facts: dict[str, Any] = {}

    def fill(folder: Path) -> None:
        for file in (IMAGE, TEXT):
            _write_graph(model, file, folder)
        facts.update(_facts(model, _write_tokenizer(model, folder)))
        facts["differences"] = compare(model, folder)
        if not facts["differences"]["score"] <= TOLERANCE:
            raise ExportError(
                f"scores through onnxruntime differ from torch by up to {facts['differences']['score']:.1e}, more than "
                f"{TOLERANCE:.0e} (blocks: images {facts['differences']['image']:.1e}, texts "
                f"{facts['differences']['text']:.1e}): nothing is written; try another release of torch or onnxruntime"
            )
        if int8:
            quantise(folder)
            facts["int8"] = measure_loss(model, folder, data)
        files.write_json(folder / FACTS, facts)

    try:
        model.eval()
        checkpoint.write_folder(out, fill, {"kind": ONNX, "fingerprint": model.fingerprint}, force=force)
    finally:
        model.train(training)
    return facts


def check_packages() -> None:
    """Raise ImportError with the pip line where a package is missing."""
    with needs("onnx", "export to ONNX"):
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401


def session(path: Path, threads: int = 0) -> Any:
    """Open a graph in onnxruntime on the CPU; 0 threads: as many as it likes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def image_inputs(model: AVSE, batch: int, random: torch.Generator) -> tuple[Tensor, ...]:
    """Return made inputs of the image side: pixels (B, 3, H, W), or features (B, G, W) and their mask (B, G)."""
    if model.pixels is not None:
        return (torch.randn(batch, 3, *model.pixels.size, generator=random),)
    cells, width = model.image_encoder.grid[1], model.image_encoder.width
    mask = torch.rand(batch, cells, generator=random) < 0.8
    mask[:, 0] = True
    return torch.randn(batch, cells, width, generator=random), mask


def text_reader(model: AVSE, folder: Path) -> Reader:
    """Return what turns sentences into the two inputs of the text side, by the folder's own file where it has one."""
    if (folder / TOKENIZER).is_file():
        from tokenizers import Tokenizer

        read = Tokenizer.from_file(str(folder / TOKENIZER)).encode_batch

        def own(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
            rows = read(list(texts))
            ids, mask = [row.ids for row in rows], [row.attention_mask for row in rows]
            return {"input_ids": np.array(ids, np.int64), "attention_mask": np.array(mask, np.int64)}

        return own

    def models(texts: Sequence[str]) -> dict[str, NDArray[np.int64]]:
        tokens = model.text_encoder.tokenize(texts)
        return {"input_ids": tokens.input_ids.numpy(), "attention_mask": tokens.attention_mask.numpy()}

    return models


def run_texts(opened: Any, read: Reader, texts: Sequence[str], batch: int = 64) -> Blocks:
    """Embed texts by an open text graph into unit blocks (m, Q, C)."""
    parts = (texts[start : start + batch] for start in range(0, len(texts), batch))
    return np.concatenate([opened.run(None, read(part))[0] for part in parts])


def compare(model: AVSE, folder: Path) -> dict[str, float]:
    """Return the largest differences from torch, of numbers of the blocks and of scores, over batches and lengths."""
    opened, random = session(folder / IMAGE), torch.Generator().manual_seed(0)
    names = [put.name for put in opened.get_inputs()]
    embed = model.embed_features if model.pixels is None else model.embed_pixels
    images: tuple[list[Blocks], list[Blocks]] = ([], [])
    for batch in (1, 3):
        inputs = image_inputs(model, batch, random)
        with torch.inference_mode():
            images[0].append(embed(*inputs).numpy())
        images[1].append(opened.run(None, {name: value.numpy() for name, value in zip(names, inputs)})[0])
    opened, read = session(folder / TEXT), text_reader(model, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the sentences is cut on purpose
        texts = np.concatenate([model.encode_texts(SENTENCES), model.encode_texts(SENTENCES)])
    alone = [run_texts(opened, read, [sentence]) for sentence in SENTENCES]
    found = np.concatenate([run_texts(opened, read, SENTENCES), *alone])
    return {
        "image": float(np.abs(np.concatenate(images[0]) - np.concatenate(images[1])).max()),
        "text": float(np.abs(texts - found).max()),
        "score": float(np.abs(aeom(np.concatenate(images[0]), texts) - aeom(np.concatenate(images[1]), found)).max()),
    }


def quantise(folder: Path) -> None:
    """Write the text side with int8 weights; activations are quantised as they come (dynamic)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with quiet():
        quantize_dynamic(folder / TEXT, folder / INT8, weight_type=QuantType.QInt8, per_channel=True)


def measure_loss(model: AVSE, folder: Path, data: PairDataset | None) -> dict[str, Any]:
    """Return the largest difference of a score that int8 texts make, and on data what it does to the recalls."""
    opened, read = session(folder / INT8), text_reader(model, folder)
    size = {"bytes": (folder / INT8).stat().st_size, "of_bytes": (folder / TEXT).stat().st_size}
    if data is None:
        with torch.inference_mode():
            embed = model.embed_features if model.pixels is None else model.embed_pixels
            images = embed(*image_inputs(model, 16, torch.Generator().manual_seed(0))).numpy()
        plain = run_texts(session(folder / TEXT), read, SENTENCES)
        lost = aeom(images, run_texts(opened, read, SENTENCES)) - aeom(images, plain)
        return {**size, "on": f"{len(SENTENCES)} made sentences, 16 made inputs", "score": float(np.abs(lost).max())}
    inputs = open_inputs(model, data)
    images, texts = encode_inputs(model, inputs)
    groups, owners = text_groups(inputs.dataset.captions), inputs.dataset.text_to_image
    distinct = [inputs.dataset.captions[row] for row in np.unique(groups, return_index=True)[1]]
    exact, rounded = aeom(images, texts), aeom(images, run_texts(opened, read, distinct))
    before, after = (retrieval_metrics(scores, owners, columns=groups) for scores in (exact, rounded))
    figures = {
        name: {"i2t_r1": report.i2t.r1, "t2i_r1": report.t2i.r1, "rsum": report.rsum}
        for name, report in (("fp32", before), ("int8", after))
    }
    told = f"{data.name}, split {data.split}: {inputs.dataset.num_images} images, {len(owners)} captions"
    return {**size, "on": told, "score": float(np.abs(exact - rounded).max()), **figures}


def _write_graph(model: AVSE, file: str, folder: Path) -> None:
    """Trace one side, `IMAGE` or `TEXT`; what cannot be traced is an ExportError that names it."""
    batch, length = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
    if file == IMAGE:
        encoder: Any = model.image_encoder
        graph: ImageGraph | TextGraph = ImageGraph(model)
        inputs = image_inputs(model, 3, torch.Generator().manual_seed(0))
        names = ("pixel_values",) if model.pixels is not None else ("features", "mask")
        shapes: tuple[Any, ...] = tuple({0: batch} for _ in inputs)
    else:
        encoder, graph = model.text_encoder, TextGraph(model)
        tokens = model.text_encoder.tokenize(SENTENCES[:3])
        inputs, names = (tokens.input_ids, tokens.attention_mask), ("input_ids", "attention_mask")
        shapes = ({0: batch, 1: length},) * 2
    graph.eval()
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph,
                inputs,
                input_names=names,
                output_names=["blocks"],
                dynamo=True,
                dynamic_shapes=shapes,
                opset_version=OPSET,
                custom_translation_table=_translations() if isinstance(encoder, BiGRU) else None,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises errors of its own and of many others
        said = next((line for line in reversed(_causes(error)) if line), type(error).__name__)
        raise ExportError(
            f"{file}: the encoder {encoder.settings.source!r} cannot be traced by torch {torch.__version__}: {said}"
        ) from error
    assert program is not None
    size = sum(value.nbytes for value in graph.state_dict().values())
    program.save(folder / file, external_data=size > _ONE_FILE)


def _causes(error: BaseException) -> list[str]:
    """Return the first lines of an error and of those that caused it, the deepest last."""
    lines = []
    while error is not None:
        lines.append(next((line.strip() for line in str(error).splitlines() if line.strip()), ""))
        error = error.__cause__  # type: ignore[assignment]
    return lines


def _translations() -> dict[Any, Any]:
    """Say what `avse::bigru` is in ONNX: a GRU that knows lengths, its two directions averaged."""
    from onnxscript import opset18

    op: Any = opset18

    def gru(x: Any, inputs: Any, states: Any, biases: Any, lengths: Any, hidden: int) -> Any:
        rows = op.Transpose(x, perm=[1, 0, 2])
        both, _ = op.GRU(
            rows,
            inputs,
            states,
            biases,
            lengths,
            None,
            direction="bidirectional",
            hidden_size=hidden,
            linear_before_reset=1,
        )
        return op.Transpose(op.ReduceMean(both, op.Constant(value_ints=[1]), keepdims=0), perm=[1, 0, 2])

    return {torch.ops.avse.bigru.default: gru}


def _write_tokenizer(model: AVSE, folder: Path) -> dict[str, Any]:
    """Write what turns sentences into ids without transformers, and return how it is called."""
    encoder = model.text_encoder
    if isinstance(encoder, BiGRU):
        files.write_json(folder / VOCABULARY, list(encoder.words))
        return {"file": VOCABULARY, "words": WORD_PATTERN, "lower_case": True, "padding": 0, "unknown": 1}
    assert isinstance(encoder, TransformerText)
    tokenizer = encoder.tokenizer
    if not tokenizer.is_fast:
        tokenizer.save_pretrained(folder / "tokenizer")
        return {"file": None, "folder": "tokenizer", "needs": "transformers.AutoTokenizer: it has no tokenizer.json"}
    from tokenizers import Tokenizer

    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.enable_truncation(encoder.max_length, direction=tokenizer.truncation_side)
    length = encoder.max_length if encoder.padding == "max_length" else None
    own.enable_padding(
        direction=tokenizer.padding_side, pad_id=encoder.pad_id, pad_token=tokenizer.pad_token, length=length
    )
    own.save(str(folder / TOKENIZER))
    return {"file": TOKENIZER, "padded_to": length or "the longest text of a batch"}


def _facts(model: AVSE, tokenizer: dict[str, Any]) -> dict[str, Any]:
    pixels, blocks, width = model.pixels, [model.num_image_blocks, model.num_text_blocks], model.block_width
    if pixels is None:
        cells, recipe = model.image_encoder.grid[1], None
        image: dict[str, Any] = {"features": ["batch", cells, model.image_encoder.width], "mask": ["batch", cells]}
    else:
        image = {"pixel_values": ["batch", 3, *pixels.size]}
        recipe = {**asdict(pixels), "decoded_at_least": pixels.draft}
    return {
        "format": "onnx",
        "opset": OPSET,
        "avse": __version__,
        "fingerprint": model.fingerprint,
        "image_blocks": blocks[0],
        "text_blocks": blocks[1],
        "block_width": width,
        "score": "sum over the text blocks of the largest dot product with an image block",
        "score_range": [-blocks[1], blocks[1]],
        **{name: value for name, value in model.facts.items() if name.startswith("logit_")},
        "image": {"file": IMAGE, "inputs": image, "output": ["batch", blocks[0], width], "pixels": recipe},
        "text": {
            "file": TEXT,
            "inputs": {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]},
            "output": ["batch", blocks[1], width],
            "max_length": model.text_encoder.max_length,
            "tokenizer": tokenizer,
        },
    }
