"""Ask the Hugging Face hub once for a repository, before libraries ask for each of its files with retries."""

from __future__ import annotations

import functools
from pathlib import Path

from huggingface_hub import get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from caldpo.errors import CaldpoError, one_line
from caldpo.utils.file_names import MODEL_FILES, TOKENIZER_FILES

_REMEDY = (
    "check the id and the network; for a private or gated repository accept its terms and log in (hf auth login, or"
    " HF_TOKEN); without network name a folder, or set HF_HUB_OFFLINE=1, and HF_HOME to a cache that holds a copy"
)


def cache_only(path: str, revision: str | None) -> bool:
    """Tell whether a model is read only from the cache, since the hub does not give it; False for a folder."""
    return not Path(path).is_dir() and (is_offline_mode() or hub_failure(path, revision) is not None)


def require_access(path: str, revision: str | None, *, key: str) -> None:
    """Refuse a model or tokenizer that neither the hub gives nor the cache holds; leave what is no id to its loading.

    Raises:
        CaldpoError: naming ``key``, after one request (of at most ``HF_HUB_ETAG_TIMEOUT``, 10 s).
    """
    if not cache_only(path, revision):
        return
    try:
        found = (try_to_load_from_cache(path, name, revision=revision) for name in MODEL_FILES + TOKENIZER_FILES)
        cached = any(isinstance(file, str) for file in found)
    except ValueError:
        return
    if not cached:
        failure = None if is_offline_mode() else hub_failure(path, revision)
        raise access_error(failure, path, revision, key=key) from failure


def access_error(failure: Exception | None, path: str, revision: str | None, *, key: str) -> CaldpoError:
    """Explain why a repository can be had neither from the hub nor from the cache; ``failure`` None: offline mode."""
    hub_failure.cache_clear()  # in a notebook the network may be back the next time, or a token in place
    if failure is None:
        wrong = "nothing of this name is cached here, and HF_HUB_OFFLINE keeps the hub from being asked"
    elif isinstance(failure, GatedRepoError):
        wrong = "access to this repository of the hub is restricted, and not granted to this token"
    elif isinstance(failure, RepositoryNotFoundError):
        wrong = "the hub has no repository of this name, or hides it from this token"
    elif isinstance(failure, RevisionNotFoundError):
        wrong = f"the hub has no revision {revision} of this repository"
    else:
        wrong = f"the hub cannot be reached, and nothing of this name is cached here ({one_line(failure)})"
    return CaldpoError(wrong, key=key, value=path, remedy=_REMEDY)


@functools.cache  # once a process, however many files are loaded
def hub_failure(path: str, revision: str | None, kind: str = "model") -> Exception | None:
    """Send one request, without retries, for a file of a ``model`` or ``dataset``; return why the hub does not give it.

    None where it does, or is busy, so that retries may help.
    """
    file = "config.json" if kind == "model" else "README.md"
    try:
        get_hf_file_metadata(hf_hub_url(path, file, repo_type=kind, revision=revision))
    except EntryNotFoundError:
        return None  # the repository is there
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        return error
    except HfHubHTTPError:
        return None
    except Exception as error:  # no network, a proxy, a name that is no id: of several libraries
        return error
    return None
