"""Upload an export to the Hugging Face hub, by huggingface_hub. The token comes from HF_TOKEN and is never shown."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from caldpo.errors import CaldpoError
from caldpo.exporting.export_settings import hub_token

_REASONS = {
    401: ("the hub does not know this token", "set HF_TOKEN to a valid one (huggingface.co/settings/tokens)"),
    403: ("the token may not write there", "use a token with write access to this organisation, or another name"),
}


def prepare_repository(name: str, *, private: bool) -> None:
    """Create the model repository ``organisation/name`` if there is none, before anything is exported.

    Raises:
        CaldpoError: the hub refuses or cannot be reached, or the repository is public where a private one is meant.
    """
    api = HfApi(token=hub_token())
    with _refusals_explained(name):
        api.whoami()
        api.create_repo(repo_id=name, repo_type="model", private=private, exist_ok=True)
        info = api.repo_info(repo_id=name, repo_type="model")
        if "write" in inspect.signature(api.auth_check).parameters:  # not in older versions
            # one that is there already is found by whoever may read it
            api.auth_check(repo_id=name, repo_type="model", write=True)
    if private and info.private is False:
        raise CaldpoError(
            "this repository exists already, and is public",
            key="push_to",
            value=name,
            remedy="set private=false if everybody may have the policy, or name another repository",
        )


def upload(name: str, folder: Path, message: str) -> str:
    """Upload the folder as one commit; return its address.

    Raises:
        CaldpoError: the hub refuses, or cannot be reached.
    """
    api = HfApi(token=hub_token())
    with _refusals_explained(name):
        done = api.upload_folder(repo_id=name, repo_type="model", folder_path=str(folder), commit_message=message)
    return str(done.commit_url)


@contextmanager
def _refusals_explained(name: str) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        refusal = (f"the hub refuses: {_first_line(error)}", "correct that, and try again")
        reason, remedy = _REASONS.get(status, refusal)
        raise CaldpoError(reason, key="push_to", value=name, remedy=remedy) from error
    except Exception as error:  # the library that makes the connection, and its errors, differ by version
        raise CaldpoError(
            f"the hub cannot be reached: {_first_line(error)}",
            key="push_to",
            value=name,
            remedy="leave push_to out where there is no network (or unset HF_HUB_OFFLINE)",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
