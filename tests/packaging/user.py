"""Five lines of somebody else's, checked by mypy against the installed wheel (`make smoke`)."""

from avse import AVSE, Index, evaluate, load_dataset


def main() -> list[str]:
    model: AVSE = AVSE.from_pretrained("run/model")
    rsum: float = evaluate(model, load_dataset("pictures", split="test")).rsum
    print(rsum)
    with Index.open("photos.avse", model=model) as index:
        return [hit.id for hit in index.search("a dog", k=3)]
