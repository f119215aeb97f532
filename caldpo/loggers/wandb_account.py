"""Whether W&B can go online without asking: its variables and its keys."""

from __future__ import annotations

import netrc
import os
from urllib.parse import urlparse


def switched_off() -> bool:
    """Tell whether W&B's own variables switch it off."""
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
    return off or os.environ.get("WANDB_MODE") == "disabled"


def account_configured() -> bool:
    """Whether W&B can go online without asking: it has a key in the environment or in netrc, and is not offline."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
