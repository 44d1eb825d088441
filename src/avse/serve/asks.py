"""From a request's body to a question: JSON or a form, checked against the limits. Knows no index and no model."""

from __future__ import annotations

import base64
import binascii
import string
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import HTTPException, Request
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from avse.images import ImageError
from avse.index.contract import is_unicode
from avse.serve.limits import Limits
from avse.serve.wire import Ask

_FIELD_BYTES = 16 << 10
"""Of a form's field that is no file, and of what a JSON body has beside letters and digits."""
_BASE64 = (string.ascii_letters + string.digits + "+/=").encode()
_Asked = tuple[Ask, bytes | None]


async def read_ask(
    request: Request, limits: Limits, aside: Callable[[Callable[[], _Asked]], Awaitable[_Asked]]
) -> _Asked:
    """Return what is asked, and the bytes of the picture it is asked with; large bodies are parsed ``aside``.

    Raises:
        HTTPException: 400 for a body that is no JSON or form, 415 for one that says it is something else, 422 for one
            that says something unfit, 429 where too much is held.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind == "application/json":
        raw = await request.body()
        if len(raw) <= _FIELD_BYTES:
            return _from_json(raw, limits)
        ask, picture = await aside(lambda: _from_json(raw, limits))
        request.state.hold(len(picture or b""))
        return ask, picture
    if kind == "multipart/form-data":
        return await _form(request, limits)
    raise HTTPException(415, "a question is application/json or multipart/form-data")


def check_words(words: str | None, where: str | None, k: int, limits: Limits) -> None:
    """Refuse a sentence, a condition or a number beyond the limits.

    Raises:
        HTTPException: 422.
    """
    for name, text, most in (("query", words, limits.query), ("where", where, limits.where)):
        if text is None:
            continue
        if len(text) > most:
            raise HTTPException(422, f"{name}: {len(text):,} characters, at most {most:,} are read")
        if not is_unicode(text) or "\0" in text:
            raise HTTPException(422, f"{name}: this is no text")
    if words is not None and not words.strip():
        raise HTTPException(422, "query: the sentence to search for is empty")
    if not 1 <= k <= limits.k:
        raise HTTPException(422, f"k={k}: 1 to {limits.k} may be asked for")


def unfit_picture(error: ImageError) -> HTTPException:
    """Return the answer to a picture that cannot be used: too large, or none."""
    return HTTPException(413 if error.reason.startswith("too large") else 415, error.reason)


def sentence_of(errors: Any) -> str:
    """Return the errors of pydantic or FastAPI as one sentence, without what was sent."""
    told = []
    for error in errors[:5]:
        place = ".".join(str(part) for part in error["loc"] if part not in ("body", "query", "path"))
        told.append(f"{place}: {error['msg']}" if place else str(error["msg"]))
    return "; ".join(told).encode("utf-8", "backslashreplace").decode()[:500]


def _from_json(raw: bytes, limits: Limits) -> _Asked:
    if len(raw.translate(None, _BASE64)) > _FIELD_BYTES:  # a picture's base64 is long, millions of keys are an attack
        raise HTTPException(400, "this is no question: it is made of too many parts")
    ask = _checked(raw, limits)
    return ask, None if ask.image is None else _bytes(ask.image)


def _checked(raw: bytes | dict[str, Any], limits: Limits) -> Ask:
    try:
        ask = Ask.model_validate_json(raw or b"null") if isinstance(raw, bytes) else Ask.model_validate(raw)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False, include_context=False)
        broken = any(each["type"] == "json_invalid" for each in errors)
        raise HTTPException(400 if broken else 422, sentence_of(errors)) from None
    check_words(ask.query, ask.where, ask.k, limits)
    return ask


async def _form(request: Request, limits: Limits) -> _Asked:
    try:
        async with request.form(max_files=1, max_fields=8, max_part_size=_FIELD_BYTES) as form:
            values: dict[str, Any] = {}
            picture = None
            for name, value in form.multi_items():
                if isinstance(value, UploadFile):
                    if name != "image":
                        raise HTTPException(422, "a form's file is named image")
                    picture = await value.read()
                elif name in values:
                    raise HTTPException(422, f"{name[:40]!r} is there twice")
                elif value != "":
                    values[name] = value
    except MultiPartException as error:
        raise HTTPException(400, f"the form: {error.message}") from None
    except (KeyError, UnicodeError, ValueError):  # of a head of a part that nobody could mean
        raise HTTPException(400, "the form cannot be read") from None
    ask = _checked(values, limits)
    if ask.image is not None:
        picture = _bytes(ask.image)
    return ask, picture or None


def _bytes(text: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data:
        raise HTTPException(422, "image: the bytes of a picture in base64 are wanted")
    return data
