"""Sentences into an index of texts: each is its own id, so the store itself tells what is new. Knows no picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from avse.index.contract import AddReport, Blocks, Encoder, Payload, Skipped, Store
from avse.index.living import progress_bar

_PAGE = 1000


def add_lines(
    store: Store,
    add: Callable[[Sequence[str], Blocks, Sequence[Payload]], None],
    encoder: Callable[[], Encoder],
    lines: Sequence[str],
    batch_size: int,
    prune: bool,
    progress: bool,
) -> AddReport:
    """Add sentences to a store; see `avse.index.Index.add_texts`. ``encoder`` is called where something is new."""
    numbers: dict[str, int] = {}
    skipped = []
    for number, line in enumerate(lines, start=1):
        if text := line.strip():
            numbers.setdefault(text, number)
        else:
            skipped.append(Skipped(f"line {number}", "empty"))
    if prune and not numbers:
        raise ValueError("no sentences: the index is left as it is")
    known = 0
    other: list[str] = []
    gone: list[str] = []
    for name, payload in (entry for page in store.entries() for entry in page):
        if name in numbers:
            known += 1
            if payload != _payload(name, numbers):
                other.append(name)
        elif prune and payload.get("text") == name:
            gone.append(name)
    there = store.known(list(numbers))
    new = [text for text in numbers if text not in there]
    with progress_bar(len(new), "text", progress) as bar:
        for part in _parts(new, batch_size):
            add(part, encoder().encode_texts(part), [_payload(text, numbers) for text in part])
            store.flush()
            bar.update(len(part))
    for part in _parts(other, _PAGE):
        names, blocks, _ = store.get(part)
        add(names, blocks, [_payload(text, numbers) for text in names])
    store.delete(gone)
    store.flush()
    return AddReport(len(new), known - len(other), tuple(skipped), changed=len(other), removed=len(gone))


def _payload(text: str, numbers: dict[str, int]) -> Payload:
    return {"text": text, "line": numbers[text]}


def _parts(names: list[str], size: int) -> Iterator[list[str]]:
    return (names[at : at + size] for at in range(0, len(names), size))
