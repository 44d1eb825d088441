"""Collections larger than one machine: embedding on a Ray cluster."""

from avse.scale.embedding import embed_with_ray

__all__ = ["embed_with_ray"]
