"""Files of repositories on the hub, and one sentence for each way in which they cannot be had."""

from __future__ import annotations

from pathlib import Path


def hub_file(repository: str, name: str, revision: str | None = None) -> Path:
    """A file's place in the cache of downloads; fetched where it is not there yet.

    Raises:
        ValueError: no network and not in the cache; a repository that is gone, private or gated; no such revision or file.
    """
    from huggingface_hub import errors, hf_hub_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except errors.GatedRepoError as error:  # a kind of the next
        why = f"{repository} is gated: accept its terms at https://huggingface.co/{repository}, then `hf auth login`"
        raise ValueError(why) from error
    except errors.RepositoryNotFoundError as error:
        why = f"the hub has no repository {repository} that you may read: name another, or a folder in diffusers layout"
        raise ValueError(why) from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repository} has no revision {revision}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:  # a kind of the next
        why = f"the hub cannot be reached, and {name} of {repository}{at} is not among earlier downloads"
        raise ValueError(why) from error
    except errors.EntryNotFoundError as error:
        raise ValueError(f"{repository}{at} has no file {name}") from error
