"""The date in a chat template that writes today's: a run keeps that of the day it began on.

transformers gives templates ``strftime_now``, which reads the clock at each call. A run that is resumed tomorrow would
have other tokens than it began with, and so would its evaluation. A macro of that name in front of the template takes
its place; the template that is exported with the policy stays as it was.
"""

from __future__ import annotations

import json
from datetime import datetime

_READS = "strftime_now"
_DIRECTIVES = (*"aAbBcd", *"HIjmMp", *"SUwWxX", *"yYzZGu", *"VeDFTR", *(f"-{letter}" for letter in "dmHIMSjye"))


def reads_clock(template: str) -> bool:
    """Whether a chat template asks for the time."""
    return _READS in template


def stopped(template: str, now: datetime) -> str:
    """The template with the clock stopped: whatever it asks of ``strftime_now`` is answered for ``now``."""
    steps = [("%%", "\0"), *((f"%{name}", now.strftime(f"%{name}")) for name in _DIRECTIVES), ("\0", "%")]
    filters = "".join(f"|replace({json.dumps(old)},{json.dumps(new)})" for old, new in steps)
    # the empty expression keeps Jinja from taking the template's first line break for that of the macro
    return f"{{% macro {_READS}(format) %}}{{{{ format{filters} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
