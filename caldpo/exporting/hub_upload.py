"""Upload an export to the Hugging Face hub, by huggingface_hub. The token comes from HF_TOKEN and is never shown."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from caldpo.errors import CaldpoError
from caldpo.exporting.export_settings import hub_token

_REASONS = {
    401: ("the hub does not know this token", "set HF_TOKEN to a valid one (huggingface.co/settings/tokens)"),
    403: ("the token may not write there", "use a token with write access to this organisation, or another name"),
}


class Repository:
    """A model repository on the hub, ``organisation/name``; ``private`` if it has to be made."""

    def __init__(self, name: str, *, private: bool) -> None:
        self.name, self.private = name, private
        self._api = HfApi(token=hub_token())

    def prepare(self) -> None:
        """Create the repository if there is none, before anything is exported.

        Raises:
            CaldpoError: the hub refuses or cannot be reached, or the repository is public where a private one is meant.
        """
        self._ask(self._api.whoami)
        self._ask(self._api.create_repo, repo_id=self.name, repo_type="model", private=self.private, exist_ok=True)
        info = self._ask(self._api.repo_info, repo_id=self.name, repo_type="model")
        if "write" in inspect.signature(self._api.auth_check).parameters:  # not in older versions
            # one that is there already is found by whoever may read it
            self._ask(self._api.auth_check, repo_id=self.name, repo_type="model", write=True)
        if self.private and info.private is False:
            raise CaldpoError(
                "this repository exists already, and is public",
                key="push_to",
                value=self.name,
                remedy="set private=false if everybody may have the policy, or name another repository",
            )

    def upload(self, folder: Path, message: str) -> str:
        """Upload the folder as one commit; return its address.

        Raises:
            CaldpoError: the hub refuses, or cannot be reached.
        """
        done = self._ask(
            self._api.upload_folder,
            repo_id=self.name,
            repo_type="model",
            folder_path=str(folder),
            commit_message=message,
        )
        return str(done.commit_url)

    def _ask(self, call: Any, **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            refusal = (f"the hub refuses: {_first_line(error)}", "correct that, and try again")
            reason, remedy = _REASONS.get(status, refusal)
            raise CaldpoError(reason, key="push_to", value=self.name, remedy=remedy) from error
        except Exception as error:  # the library that makes the connection, and its errors, differ by version
            raise CaldpoError(
                f"the hub cannot be reached: {_first_line(error)}",
                key="push_to",
                value=self.name,
                remedy="leave push_to out where there is no network (or unset HF_HUB_OFFLINE)",
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
