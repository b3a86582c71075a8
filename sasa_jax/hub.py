"""Folders on the Hugging Face Hub, down and up; needs the extra `hub`.

Everything goes through `huggingface_hub`: its cache, HF_TOKEN or `hf auth login`, HF_ENDPOINT,
HF_HUB_OFFLINE. What comes down are files; nothing in them is executed.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

PREFIX = "hf://"


class HubError(ValueError):
    """The Hub cannot be used as asked; says why and what to do."""


def on_hub(source: str | os.PathLike[str]) -> bool:
    """Whether it is written hf://OWNER/NAME, or hf://OWNER/NAME@REVISION."""
    return str(source).startswith(PREFIX)


def download(source: str, files: Sequence[str]) -> Path:
    """The local folder of a repository, with those of the files that it has.

    What is in the cache and still the newest is not sent again; without a network the newest in the
    cache is taken.

    Args:
        source: see `on_hub`; a revision is a branch, a tag or a commit.
        files: their names.

    Raises:
        HubError: no such repository, no network, or huggingface_hub is not installed.
    """
    repository, _, revision = source.removeprefix(PREFIX).partition("@")
    with _explained(repository):
        from huggingface_hub import snapshot_download  # an extra

        return Path(
            snapshot_download(repository, revision=revision or None, allow_patterns=list(files))
        )


def check_upload(repository: str) -> None:
    """Asks the Hub who is logged in: before the work of making what is to be uploaded.

    Raises:
        HubError: nobody is, there is no network, the name is not OWNER/NAME, or huggingface_hub is
            not installed.
    """
    with _explained(repository):
        from huggingface_hub import HfApi

        HfApi().whoami()


def upload(folder: Path, repository: str) -> str:
    """Makes the repository unless it is there, and commits the folder's files to it.

    Returns:
        The repository's address.

    Raises:
        HubError: as `check_upload`, or the repository is not one's own.
    """
    with _explained(repository):
        from huggingface_hub import HfApi

        api = HfApi()
        address = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message="sasa_jax export")
        return str(address)


@contextlib.contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turns whatever goes wrong with a repository into one line."""
    try:
        from huggingface_hub import errors
        from huggingface_hub.utils import validate_repo_id
    except ImportError as error:
        raise HubError(
            "the Hugging Face Hub needs huggingface_hub: pip install 'sasa_jax[hub]'"
        ) from error
    try:
        validate_repo_id(repository)
        if "/" not in repository:
            raise errors.HFValidationError("it has no owner")
        yield
    except errors.HFValidationError as error:
        raise HubError(f"{repository!r} is not OWNER/NAME on the Hub: {error}") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError("not logged in to the Hub: `hf auth login`, or set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{repository} on the Hub has no such branch, tag or commit") from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{repository} is not on the Hub, or not for everyone: `hf auth login` if it should be"
        ) from error
    # Its HTTP client has errors of its own, some of many lines.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise HubError(f"the Hub could not be used for {repository}: {reason}") from error
