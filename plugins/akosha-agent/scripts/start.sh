#!/bin/sh
# Starts akosha-agent with the given arguments, for the hook and the MCP server of the plugin.
#
# Claude Code may have been started without the PATH of a login shell, so the directories of the documented
# installations are searched, too. Relative directories of PATH are skipped, and Python does not import from the
# working directory or PYTHONPATH: a project must not replace the agent.

unset PYTHONPATH PYTHONHOME PYTHONSTARTUP
PYTHONSAFEPATH=1
export PYTHONSAFEPATH

set -f
IFS=:
for directory in ${PATH-} "${HOME-}/.local/bin" "${HOME-}/.akosha-agent/bin"; do
    case $directory in
        /*) program=$directory/akosha-agent ;;
        *) continue ;;
    esac
    if [ -f "$program" ] && [ -x "$program" ]; then
        exec "$program" "$@"
    fi
done

echo "akosha-agent is not installed: not found on PATH, in ~/.local/bin or in ~/.akosha-agent/bin. To install it," \
    "in a clone: uv tool install . (or: pipx install ., or a virtual environment in your home directory)" >&2
exit 1
