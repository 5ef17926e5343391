"""Files of repositories on the hub, and one sentence for each way in which they cannot be had."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub.errors import HfHubHTTPError


def hub_file(repository: str, name: str, revision: str | None = None, advice: str = "") -> Path:
    """A file's place in the cache of downloads; fetched where it is not there yet.

    Args:
        repository: its id, `owner/name`.
        name: of the file in it.
        revision: of the repository; None takes the newest.
        advice: what to do where the repository is gone, which only the caller knows.

    Raises:
        ValueError: no network and not in the cache; a repository that is gone, private or gated; no such revision or file; a download that broke off.
    """
    from huggingface_hub import hf_hub_download

    with _in_one_sentence(repository, name, revision, advice):
        return Path(hf_hub_download(repository, name, revision=revision))


def is_kept(repository: str, name: str, revision: str | None = None) -> bool:
    """Whether a file of a repository is in the cache of downloads; nothing is fetched."""
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, name, revision=revision), str)


def hub_folder(
    repository: str, patterns: Sequence[str], revision: str | None = None, kind: str = "model"
) -> Path:
    """A folder in the cache of downloads with those files of a repository that fit one of the patterns; what is not there yet is fetched.

    Raises:
        ValueError: as `hub_file`; no file that fits is no mistake.
    """
    from huggingface_hub import snapshot_download

    with _in_one_sentence(repository, "a part", revision):
        return Path(
            snapshot_download(repository, repo_type=kind, revision=revision, allow_patterns=list(patterns))
        )


@contextmanager
def _in_one_sentence(repository: str, name: str, revision: str | None, advice: str = "") -> Iterator[None]:
    """What the hub's client raises as a ValueError of one sentence."""
    from huggingface_hub import errors

    client_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]  # of the library it speaks through
    at = f" at revision {revision}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:  # a kind of the next
        why = f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then `hf auth login`"
        raise ValueError(why) from error
    except errors.RepositoryNotFoundError as error:
        told = f": {advice}" if advice else ""
        raise ValueError(f"the hub has no repository {repository} that you may read{told}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repository} has no revision {revision}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:  # a kind of the next
        answer = error.__cause__  # of a hub that can be reached and does not give it out
        told = _told(answer) if isinstance(answer, errors.HfHubHTTPError) else "the hub cannot be reached"
        why = f"{told}, and {name} of {repository}{at} is not among earlier downloads"
        raise ValueError(why) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{repository}{at} has no file {name}") from error
    except client_error as error:
        if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
            raise ValueError(f"{name} of {repository}{at} cannot be had: {_told(error)}") from error
        why = f"the download of {name} of {repository}{at} broke off ({type(error).__name__}): the same command goes on with it"
        raise ValueError(why) from error
    except OSError as error:  # a full disk, or another size than was announced
        why = f"{name} of {repository}{at} could not be fetched: {(error.strerror or str(error)).splitlines()[0]}"
        raise ValueError(why) from error


def _told(answer: HfHubHTTPError) -> str:
    """What the hub answered, with what to do about a token that it does not know."""
    status = answer.response.status_code
    login = ": `hf auth login`, or another HF_TOKEN" if status == 401 else ""
    said = " ".join((answer.server_message or answer.response.reason_phrase).split())
    return f"the hub answers {status} ({said}){login}"
