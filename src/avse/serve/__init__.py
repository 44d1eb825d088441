"""The server: an index behind a page and an API over HTTP; `avse serve` runs it. Needs the extra ``serve``."""

from avse.serve.app import create_app
from avse.serve.limits import Limits

__all__ = ["Limits", "create_app"]
