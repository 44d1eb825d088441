"""What a server accepts at most. Knows nothing else."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """The bounds of every request; beyond one of them it is refused with the status in brackets.

    Attributes:
        upload_bytes: Of a request's body, counted while it is read (413).
        pixels: Of a picture, read from its header before it is decoded (413).
        k: Answers asked for (422).
        query: Characters of a sentence (422).
        where: Characters of a condition (422).
        page: Entries of one page of ``GET /api/images`` (422).
        in_flight: Requests to the API and for thumbnails at one time (429 with Retry-After).
        waiting: Questions in the queue of the one thread that answers (429 with Retry-After).
        batch: Questions answered together; 1: each alone.
        held_bytes: Of bodies and of decoded pictures, of all requests together (429 with Retry-After).
        connections: Open at one time (503).
        header_bytes: Of a request's head (400).
        idle_seconds: For a request's head to arrive, and between two requests of a connection (closed).
        seconds: From the head of a request to the end of its answer (408 while its body arrives, else 503).
        thumbnail_bytes: Of thumbnails kept in memory.
    """

    upload_bytes: int = 32 << 20
    pixels: int = 50_000_000
    k: int = 200
    query: int = 1000
    where: int = 1000
    page: int = 1000
    in_flight: int = 256
    waiting: int = 256
    batch: int = 32
    held_bytes: int = 512 << 20
    connections: int = 512
    header_bytes: int = 16 << 10
    idle_seconds: float = 15.0
    seconds: float = 120.0
    thumbnail_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        """Refuse what is not above 0.

        Raises:
            ValueError: It is not.
        """
        for each in fields(self):
            if not (value := getattr(self, each.name)) > 0:
                raise ValueError(f"{each.name}={value}: a limit is above 0")
