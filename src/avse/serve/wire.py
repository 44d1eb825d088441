"""What goes over the wire: requests and answers of the API, as OpenAPI shows them. Knows no index."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

PAYLOAD: dict[str, Any] = {"path": "2019/sea.jpg", "name": "sea.jpg", "folder": "2019", "width": 4000, "height": 3000}
HIT: dict[str, Any] = {"id": "2019/sea.jpg", "score": 2.31, "confidence": 0.93, "weak": False, "payload": PAYLOAD}


class Error(BaseModel):
    """Every answer but 2xx and 304."""

    detail: str = Field(examples=["k=0: 1 to 200 are answered"])


class Ask(BaseModel):
    """A question: a sentence, a picture or both."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"query": "a red car on the beach", "k": 5}]}
    )

    query: str | None = Field(None, description="A sentence; not for an index of texts.")
    image: str | None = Field(None, description="A picture's bytes in base64 (in a form: a file).")
    where: str | None = Field(None, description="Only entries such as: folder = 2019 and width > 1000")
    k: int = Field(10, description="How many.")
    approximate: bool = Field(False, description="By the graph of an embedded or qdrant:// index.")


class HitOut(BaseModel):
    """One answer; confidence (0 to 1) and weak are null where nothing was calibrated."""

    model_config = ConfigDict(json_schema_extra={"examples": [HIT]})

    id: str
    score: float
    confidence: float | None
    weak: bool | None
    payload: dict[str, Any]


class Found(BaseModel):
    """Answers, best first."""

    hits: list[HitOut]
    weak: bool | None = Field(description="True: no hit is better than weak, so nothing fits; null: not calibrated.")
    gallery: int = Field(description="Entries of the index.")
    upper: float = Field(description="What a score reaches at most.")
    took_ms: float
    notes: list[str] = Field(description="Fields of `where` that no entry has.")


class Entry(BaseModel):
    """An entry of the index."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": HIT["id"], "payload": PAYLOAD}]})

    id: str
    payload: dict[str, Any]


class EntryOut(Entry):
    """One entry, and whether its picture is there."""

    picture: bool


class Page(BaseModel):
    """Some entries; ``next`` is what to give as ``after``, null at the end."""

    entries: list[Entry]
    next: str | None


class Explained(BaseModel):
    """Why a picture and a sentence score as they do; docs/explain.md says what each part means."""

    id: str = Field(examples=["2019/sea.jpg"])
    text: str = Field(examples=["a boat"])
    score: float = Field(examples=[0.5])
    upper: int = Field(description="What the score reaches at most.")
    method: str = Field(description="exact or gradient")
    matches: list[dict[str, float]] = Field(description="text_block, image_block, view, score and share of each.")
    words: list[dict[str, Any]] = Field(description="word, start, end, score and share of each.")
    grid: list[int] = Field(description="Rows and columns of cells.")
    heat: list[list[float]] = Field(description="What each cell supplied to the score.")
    heats: list[list[list[float]]] = Field(description="The same for each block of the sentence.")
    beyond: float = Field(description="What no cell supplied.")
    beside: float = Field(description="What no word supplied.")
    frame: list[float] = Field(description="What the encoder sees: x0, y0, x1, y1 as shares of the picture's sides.")
    boxes: list[list[float]] | None = Field(description="Of regions, in place of a grid.")
    confidence: float | None
    weak: bool | None


class Added(BaseModel):
    """Where a picture is now."""

    id: str = Field(examples=["2019/sea.jpg"])


class Value(BaseModel):
    """A value of a field and how many entries have it."""

    value: str
    count: int


class Facet(BaseModel):
    """A field that filters may ask for."""

    name: str
    kind: str = Field(description="number, text or date")
    count: int = Field(description="Entries that have it.")
    values: list[Value] = Field([], description="Of a text: the commonest.")
    min: float | str | None = None
    max: float | str | None = None


class Info(BaseModel):
    """What the index is, and what may be asked of it."""

    entries: int = Field(examples=[2921])
    side: str = Field(examples=["images"])
    version: str
    blocks: dict[str, int] = Field(examples=[{"P": 2, "Q": 1, "C": 512}])
    calibrated: bool
    approximate: bool
    examples: list[str]
    uploads: bool
    limits: dict[str, int]
    fields: list[Facet]


class Health(BaseModel):
    """Whether it answers."""

    status: str = Field(examples=["ok"])
    entries: int = Field(examples=[2921])


class Session(BaseModel):
    """What a browser gives once, to go on with a cookie."""

    token: str = Field(examples=["correct-horse-battery-staple"])
