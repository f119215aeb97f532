"""Completion of the ``caldpo`` command by Tab: a script for a shell, which asks Hydra for groups, options and keys.

Hydra completes what follows a command's name (``--shell-completion query=``); the names are in the script itself.
"""

from __future__ import annotations

from collections.abc import Iterable

from caldpo.config.did_you_mean import suggest
from caldpo.errors import CaldpoError

SHELLS = ("bash", "zsh", "fish")
_OPTIONS = "--help --version --multirun --cfg --config-dir --config-path --config-name --package --resolve --info"

_BASH = r"""_caldpo() {
    local line=${COMP_LINE:0:$COMP_POINT} IFS=$' \t\n' end= found before
    local word=${line##*[[:space:]]} rest=${line#*caldpo}
    rest=${rest#"${rest%%[![:space:]]*}"}
    local command=${rest%%[[:space:]]*}
    COMPREPLY=()
    if [[ $rest != *[[:space:]]* ]]; then
        found='@COMMANDS@' end=' '
    elif [[ $word == -* ]]; then
        found='@OPTIONS@' end=' '
    else
        found=$(COMP_LINE="caldpo ${rest#"$command"}" COMP_POINT=$COMP_POINT \
            caldpo "$command" --shell-completion query=bash 2>/dev/null)
    fi
    # what is typed up to the last = stays where the shell takes = for the end of a word
    before=
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && before=${word%"${word##*=}"}
    local candidate
    while read -r candidate; do
        [[ -n $candidate && $candidate == "$word"* ]] && COMPREPLY+=("${candidate#"$before"}$end")
    done <<< "${found// /$'\n'}"
    if [[ -z $end && $word != *=* ]]; then
        while read -r candidate; do
            [[ -n $candidate ]] && COMPREPLY+=("$candidate")
        done <<< "$(compgen -f -- "$word")"
    fi
}
complete -o nospace -F _caldpo caldpo
"""

_ZSH = r"""_caldpo() {
    local rest=${${LBUFFER##*caldpo}## #}
    local word=${rest##* } command=${rest%% *}
    if [[ $rest != *\ * ]]; then
        compadd -- @COMMANDS@
    elif [[ $word == -* ]]; then
        compadd -- @OPTIONS@
    else
        local found=$(COMP_LINE="caldpo ${rest#$command}" COMP_POINT=0 \
            caldpo $command --shell-completion query=bash 2>/dev/null)
        compadd -S '' -- ${=found}
        [[ $word == *=* ]] || _files
    fi
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _caldpo caldpo
"""

_FISH = r"""function __caldpo
    set -l words (commandline -opc)
    if test (count $words) -lt 2
        printf '%s\n' @COMMANDS@
        return
    end
    if string match -q -- '-*' (commandline -ct)
        printf '%s\n' @OPTIONS@
        return
    end
    set -l rest (string replace -r '^\s*\S+\s+\S+' '' -- (commandline -cp))
    COMP_LINE="caldpo $rest" caldpo $words[2] --shell-completion query=fish 2>/dev/null
end
complete -c caldpo -n 'test (count (commandline -opc)) -lt 2' -f
complete -c caldpo -a '(__caldpo)'
"""


def completion_script(shell: str, commands: Iterable[str]) -> str:
    """Write the script that makes a shell complete ``caldpo`` and its ``commands``.

    Raises:
        CaldpoError: there is none for that shell.
    """
    scripts = dict(zip(SHELLS, (_BASH, _ZSH, _FISH), strict=True))
    if shell not in scripts:
        raise CaldpoError(
            f"completes no such shell{suggest(shell, SHELLS)}",
            key="completion",
            value=shell,
            remedy="source <(caldpo completion bash), or zsh; caldpo completion fish | source",
        )
    names = " ".join([*commands, "--help", "--version"])
    return scripts[shell].replace("@COMMANDS@", names).replace("@OPTIONS@", _OPTIONS)
