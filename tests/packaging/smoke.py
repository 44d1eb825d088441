"""What an installation without extras must do: run by its own Python, outside the checkout (`make smoke`).

The whole way from made pictures to an answer with small random encoders, then everything that needs an extra: the error
is one line that names the pip line of that extra. Knows the standard library and the installed avse alone.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.metadata import distributions, version
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
OPTIONAL = {
    *("datasets", "eccv-caption", "efficientnet-lite-pytorch", "faiss-cpu", "fastapi", "matplotlib", "maxsim-cpu"),
    *("numba", "onnx", "onnxruntime", "protobuf", "pyarrow", "qdrant-client", "ray", "sentence-transformers"),
    *("sentencepiece", "tensorboard", "torchvision", "uvicorn"),
}


def run(*words: object, code: int) -> tuple[str, str]:
    """Run a program of the installation; its standard output and error."""
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


def avse(*words: object, code: int = 0) -> tuple[str, str]:
    """Run a verb."""
    return run("-m", "avse", *words, code=code)


def encoders(folder: Path) -> list[str]:
    """Save a ViT and a BERT of random weights; the settings of a model that trains on them in seconds."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer, ViTConfig, ViTModel

    torch.manual_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder / "vit")
    BertModel(BertConfig(**small, vocab_size=len(WORDS))).save_pretrained(folder / "bert")
    BertTokenizer(vocab={word: at for at, word in enumerate(WORDS)}).save_pretrained(folder / "bert")
    settings = {"model.image_encoder.source": folder / "vit", "model.text_encoder.source": folder / "bert"}
    settings |= {"model.embed_dim": 16, "model.block_width": 8, "train.epochs": 1, "train.batch_size": 16}
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def journey() -> list[str]:
    """Pictures, training, figures, index, answer, check: the settings of the model for what follows."""
    assert avse("--version")[0].strip() == f"avse {version('avse')}"
    assert "Image-text retrieval" in avse("--help")[0]
    assert "torch" in avse("info", "--json")[0]
    assert "flickr30k-vit224" in avse("recipes")[0]
    avse("data", "scenes", "--out", "scenes", "--count", 60, "--size", 32)
    small = encoders(Path.cwd())
    _, said = avse("train", "scenes", "--out", "run", *small)
    assert 'pip install "avse[plots]"' in said, said  # the curves are left out, with a line
    figures, _ = avse("evaluate", "run/model", "scenes", "--json")
    assert "rsum" in json.loads(figures.splitlines()[0]), figures
    avse("index", "scenes", "--out", "scenes.avse", "--model", "run/model")
    hits, _ = avse("search", "scenes.avse", "a red circle", "-k", 3, "--json")
    assert len([json.loads(line) for line in hits.splitlines()]) == 3, hits
    avse("verify", "run/model")
    avse("verify", "scenes.avse")
    return small


def refusals(small: list[str]) -> dict[str, str]:
    """Do without its packages what needs an extra: extra -> the last line that was said."""
    Path("hf").mkdir()
    Path("hf/metadata.csv").write_text("file_name,text\na.png,a dog\n", "utf-8")
    Path("siglip").mkdir()
    Path("siglip/config.json").write_text('{"model_type": "siglip"}', "utf-8")
    Path("siglip/tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}', "utf-8")
    Path("siglip/spiece.model").touch()
    train = ["train", "scenes", "--out", "other"]
    verbs: dict[str, list[object]] = {
        "demo": [*train, "--config", "scenes"],
        "glove": [*train, *small, "--set", "model.text_encoder={source: bigru, vectors: glove}"],
        "hf": ["data", "check", "hf"],
        "onnx": ["export", "run/model", "--to", "onnx", "--out", "exported"],
        "parquet": ["evaluate", "run/model", "scenes", "--save-rankings", "x.parquet"],
        "plots": ["bench", "matching", "--out", "x.png"],
        "ray": ["index", "scenes", "--out", "x.avse", "--model", "run/model", "--ray"],
        "sentence": ["export", "run/model", "--to", "sentence-transformers", "--out", "exported"],
        "serve": ["serve", "scenes.avse", "--port", 0],
        "server": ["search", "qdrant://localhost/x", "a dog"],
        "tensorboard": [*train, *small, "--set", "train.tensorboard=true"],
    }
    programs = {
        "bench": "from avse.benchmarks.rivals import missing; raise ImportError(missing('faiss'))",
        "eccv": "import avse.eccv; avse.eccv.load_metrics()",
        "siglip": "import pathlib, avse.encoders.text as t; t.load_tokenizer(pathlib.Path('siglip'))",
    }
    said = {extra: avse(*words, code=1)[1] for extra, words in verbs.items()}
    said |= {extra: run("-c", program, code=1)[1] for extra, program in programs.items()}
    return {extra: text.strip().splitlines()[-1] for extra, text in sorted(said.items())}


def main() -> None:
    """Run all of it in a folder that goes away, and print each line that was said."""
    there = {name.lower() for found in distributions() if (name := found.metadata["Name"])} & OPTIONAL
    assert not there, f"this environment is not empty, it has {', '.join(sorted(there))}"
    started, home, wrong = time.perf_counter(), Path.cwd(), []
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            small = journey()
            print(f"made, trained, measured, indexed, searched, verified: {time.perf_counter() - started:.0f} s")
            for extra, line in refusals(small).items():
                print(f"{extra:12} {line}")
                wrong += [] if f'pip install "avse[{extra}]"' in line else [extra]
        finally:
            os.chdir(home)
    assert not wrong, f"without its pip line: {', '.join(wrong)}"


if __name__ == "__main__":
    main()
