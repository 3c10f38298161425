"""Programs of the platform that only record how they are called."""

UNIT = "akosha-agent.service"

SYSTEMCTL = """#!/bin/sh
echo "systemctl $*" >> "$FAKE/log"
units="$HOME/.config/systemd/user"
[ -e "$FAKE/unreachable" ] && [ "$SYSTEMD_OFFLINE" != 1 ] && { echo "Failed to connect to bus" >&2; exit 1; }
case "$2" in
  show)
    pid=0; state=inactive; [ -e "$FAKE/running" ] && pid=4711 && state=active
    load=not-found; [ -e "$units/akosha-agent.service" ] && load=loaded
    file=disabled; [ -L "$units/default.target.wants/akosha-agent.service" ] && file=enabled
    printf 'LoadState=%s\\nActiveState=%s\\nSubState=x\\nUnitFileState=%s\\nMainPID=%s\\n' $load $state $file $pid ;;
  enable)
    mkdir -p "$units/default.target.wants"
    ln -sf "$units/akosha-agent.service" "$units/default.target.wants/akosha-agent.service" ;;
  disable)
    rm -f "$units/default.target.wants/akosha-agent.service" "$FAKE/running"
    rmdir "$units/default.target.wants" ;;
  start|restart) [ -e "$FAKE/broken" ] && { echo "Job failed" >&2; exit 1; }; touch "$FAKE/running" ;;
  stop) rm -f "$FAKE/running" ;;
esac
"""
OTHER_COMMAND = """#!/bin/sh
echo "$(basename "$0") $*" >> "$FAKE/log"
[ "$(basename "$0")" = loginctl ] && echo no
exit 0
"""
