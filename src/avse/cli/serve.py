"""``avse serve``: answer on a page and over HTTP."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
import webbrowser
from dataclasses import replace
from pathlib import Path

from avse.cli.common import MisuseError, natural_int, positive_int, prepare_process
from avse.extras import needs

DEMO = "runs/demo/index.avse"
PORT = 8377
EXAMPLES = (  # on open clip art; the last one has no answer there, and the page says so
    "a red flower",
    "fast sports car",
    "a globe of the world",
    "a small house",
    "a green computer",
    "quarterly tax report",
)
_LIMITS = {
    "max_upload": ("upload_bytes", "bytes of a request's body"),
    "max_pixels": ("pixels", "pixels of a picture that is sent"),
    "max_k": ("k", "answers to a question"),
    "in_flight": ("in_flight", "requests at once"),
    "batch": ("batch", "questions answered together; 1: each alone"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("index", nargs="?", metavar="INDEX", help="folder of the index, or qdrant://host:6333/name")
    parser.add_argument("--model", metavar="DIR", help="folder of the model, where the index's own has moved")
    parser.add_argument("--demo", action="store_true", help=f"serve {DEMO}, which `avse demo` makes")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")
    parser.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default: 127.0.0.1; any other wants a token)"
    )
    parser.add_argument("--port", type=natural_int, default=PORT, help=f"default: {PORT}; 0: one that is free")
    parser.add_argument(
        "--token",
        help="what clients must bring, and what lets pictures be added and deleted (default: the environment variable "
        "AVSE_TOKEN, which no list of processes shows)",
    )
    parser.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN", help="let pages of this origin ask (may be repeated)"
    )
    parser.add_argument("--log-queries", action="store_true", help="write sentences into the log, too")
    for name, (_, text) in _LIMITS.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=positive_int, help=f"at most so many {text}")


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM.

    Raises:
        MisuseError: No index or two, another host without a token, an origin that is none.
        FileNotFoundError: --demo, and there is no demo.
        ImportError: The extra ``serve`` is not installed.
        OSError: The port is in use, or the index.
    """
    prepare_process()
    if not args.log_queries:  # the warning quotes the sentence
        warnings.filterwarnings("ignore", "a sentence was cut", UserWarning)
    token = args.token or os.environ.get("AVSE_TOKEN")
    place = _place(args)
    loopback = args.host in ("127.0.0.1", "localhost", "::1")
    if not loopback and not token:
        raise MisuseError(f"--host {args.host}: others may reach it, so give a --token (or AVSE_TOKEN) that they need")
    for origin in args.cors:
        kind, _, rest = origin.partition("://")
        if kind not in ("http", "https") or not rest or "/" in rest:
            raise MisuseError(f"--cors {origin}: an origin such as https://example.org is wanted, without a path")
    with needs("serve", "the server"):
        from avse.serve import Limits, create_app
        from avse.serve.run import Server, listen
    from avse.index import Index

    given = {field: getattr(args, name) for name, (field, _) in _LIMITS.items() if getattr(args, name)}
    limits = replace(Limits(), **given)
    with listen(args.host, args.port) as sock, Index.open(place, model=args.model) as index:
        print(f"{index.encoder.fingerprint[:12]} is ready for {len(index):,} entries", file=sys.stderr)
        app = create_app(
            index,
            token=token,
            limits=limits,
            cors=args.cors,
            any_host=not loopback,
            examples=EXAMPLES if args.demo else (),
            log_queries=args.log_queries,
        )
        host = f"[{args.host}]" if ":" in args.host else args.host
        url = f"http://{host}:{sock.getsockname()[1]}/"
        Server(app, limits, lambda: _tell(url, token is not None, args.open)).run_on(sock)
    print("stopped, the index is closed", file=sys.stderr)
    return 0


def _place(args: argparse.Namespace) -> str:
    if args.demo == (args.index is not None):
        raise MisuseError("give an INDEX or --demo" if args.index is None else "--demo goes without an INDEX")
    if args.demo and not Path(DEMO).is_dir():
        raise FileNotFoundError(f"there is no {DEMO}: run `avse demo` first (once, some minutes), in this folder")
    return DEMO if args.demo else str(args.index)


def _tell(url: str, guarded: bool, browse: bool) -> None:
    rights = "it asks for the token" if guarded else "read-only; --token lets pictures be added"
    print(f"serving on {url} ({rights}); Ctrl-C ends it", file=sys.stderr, flush=True)
    if browse:
        webbrowser.open(url)
