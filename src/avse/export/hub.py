"""An exported folder uploaded to Hugging Face's hub: the only part of the exports that touches the network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from avse import __version__, files
from avse.export import HUB, SENTENCE, kind_of
from avse.export.card import CARD


def push(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload an exported folder as it is, manifest and card in it, as one commit; call it only where someone asked.

    The token is that of ``HF_TOKEN`` or ``hf auth login``; ``HF_ENDPOINT`` names another hub.

    Args:
        folder: Of the kind huggingface or sentence-transformers, as `avse export` wrote it; its card may be edited.
        repo_id: ``owner/name``; the repository is made if it is not there.
        private: Only for the owner. A repository that is there and is not what was asked for is refused.

    Returns:
        The address of the repository.

    Raises:
        ValueError: Not such a folder, or damaged; a name that the hub does not take; a repository that is public and
            should be private, or the other way round.
        ConnectionError: The hub cannot be reached, refuses, or knows no token; the message has the way out.
    """
    if kind_of(folder) not in (HUB, SENTENCE) or not (Path(folder) / CARD).is_file():
        raise ValueError(
            f"{folder} is no folder for the hub with its {CARD}: avse export MODEL --to huggingface --out FOLDER makes "
            "one"
        )
    files.verify_manifest(folder)
    from huggingface_hub import HfApi

    api = HfApi(library_name="avse", library_version=__version__)
    with _telling(api.endpoint, folder, repo_id):
        url = str(api.create_repo(repo_id, private=private, exist_ok=True))
        is_public = not api.repo_info(repo_id).private
    if private and is_public:
        raise ValueError(f"{repo_id} is public: push with private=False (--public), or choose another name")
    if not (private or is_public):
        raise ValueError(
            f"{repo_id} is private, and a push does not change that: make it public in its settings at {url}, or leave "
            "out private=False (--public)"
        )
    with _telling(api.endpoint, folder, repo_id):
        api.upload_folder(folder_path=folder, repo_id=repo_id, commit_message=f"Model of avse {__version__}")
    return url


@contextmanager
def _telling(endpoint: str, folder: str | Path, repo_id: str) -> Iterator[None]:
    """Turn what goes wrong with the hub into one line with the way out."""
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    login = "set HF_TOKEN to a token that may write, or log in by hf auth login"
    try:
        yield
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is no name of a repository: OWNER/NAME is wanted ({error})") from error
    except LocalTokenNotFoundError as error:
        raise ConnectionError(f"no token for {endpoint}: {login}") from error
    except Exception as error:  # those of the hub's HTTP client, which is another one from version to version
        status = getattr(getattr(error, "response", None), "status_code", None)
        cure = {401: login, 403: "the token may not write there: take one that may, or an owner of yours"}
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        way_out = cure.get(status or 0, f"avse export {folder} --push-to-hub {repo_id} tries again")
        raise ConnectionError(f"{repo_id} was not pushed to {endpoint}: {said}; {way_out}") from error
