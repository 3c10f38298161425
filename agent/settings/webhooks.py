"""The setting of webhooks: a list of mappings in YAML, and the same as JSON in a variable or on the command line."""

import base64
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from agent.domain.parsing import parse_json
from agent.settings import endpoints
from agent.settings.validators import Number

if TYPE_CHECKING:
    from agent.domain.webhooks import Webhook

KEY = "agent_webhooks"
MOST_WEBHOOKS = 20
KEY_BYTES = range(24, 65)
"""Lengths of keys that Standard Webhooks permits."""

KEY_RULE = 'must be whsec_ and the Base64 of 24 to 64 bytes: echo "whsec_$(openssl rand -base64 32)" makes one'

ALLOWED = (
    "a list of webhooks, each with url and events (succeeded, failed, overdue, recovered, damaged), and if needed "
    "secret, overdue_hours and format"
)

_FIELDS = {
    "url": "must be a text",
    "events": "must be a list of succeeded, failed, overdue, recovered and damaged, with at least one of them",
    "secret": "must be a text",
    "overdue_hours": "must be a number above 0, up to 8760",
    "format": "must be cloudevent or text",
}
_PREFIX = "whsec_"
_URL = re.compile(r"[!#$%&'()*+,./0-9:;=?@A-Z\[\]_a-z~-]+")


def _url(value: SecretStr) -> SecretStr:
    # Whether http:// is permitted is checked later: akosha_agent_allow_plaintext is not known yet.
    url = value.get_secret_value()
    if not _URL.fullmatch(url):
        raise ValueError(f"must be {endpoints.HTTP}, with all other characters percent-encoded")
    endpoints.check_webhook_url(url)
    return value


def _secret(value: SecretStr) -> SecretStr:
    _key(value)
    return value


def _key(secret: SecretStr) -> bytes:
    """Return the key in a secret, empty for none. Raises ValueError."""
    text = secret.get_secret_value()
    if not text:
        return b""
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except ValueError:
        key = b""
    if not text.startswith(_PREFIX) or len(key) not in KEY_BYTES:
        raise ValueError(KEY_RULE) from None
    return key


class WebhookSetting(BaseModel):
    """One webhook."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, str_strip_whitespace=True)

    url: Annotated[SecretStr, AfterValidator(_url)]
    events: tuple[Literal["succeeded", "failed", "overdue", "recovered", "damaged"], ...] = Field(min_length=1)
    secret: Annotated[SecretStr, AfterValidator(_secret)] = SecretStr("")
    overdue_hours: Number = Field(default=24.0, gt=0, le=8760)
    format: Literal["cloudevent", "text"] = "cloudevent"

    def webhook(self, number: int) -> "Webhook":
        """Return the webhook for the application. `number`: its place in the setting, from 1."""
        from agent.domain.webhooks import Webhook  # noqa: PLC0415 - few have a webhook

        return Webhook(
            number=number,
            url=self.url.get_secret_value(),
            events=frozenset(self.events),
            key=_key(self.secret),
            overdue_hours=self.overdue_hours,
            as_text=self.format == "text",
        )


def _from_json(value: object) -> object:
    """Return the list in a JSON text; an empty text is none."""
    if isinstance(value, str):
        try:
            value = parse_json(value) if value.strip() else []
        except ValueError:
            raise ValueError(f"is not valid JSON; must be {ALLOWED}") from None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be {ALLOWED}")  # noqa: TRY004 - pydantic collects ValueErrors only
    if len(value) > MOST_WEBHOOKS:
        raise ValueError(f"must have at most {MOST_WEBHOOKS} webhooks")
    return value


def _different(value: tuple[WebhookSetting, ...]) -> tuple[WebhookSetting, ...]:
    if len({one.url.get_secret_value() for one in value}) < len(value):
        raise ValueError("must not have a URL twice: name all events of a URL in one webhook")
    return value


Webhooks = Annotated[tuple[WebhookSetting, ...], BeforeValidator(_from_json), AfterValidator(_different)]


def webhook_problem(place: tuple[int | str, ...], kind: str, reason: object) -> str:
    """Return a problem for people. `place`: index, name of the field, and more; `kind`: pydantic's type of error."""
    number, *names = place
    webhook = f"webhook {int(number) + 1}"
    if not names:
        return f"{webhook} must be a mapping with url and events"
    name = str(names[0])
    if name not in _FIELDS:  # not shown: it may be a secret at the wrong place
        close = difflib.get_close_matches(name, _FIELDS, n=1)
        return f"{webhook} has an unknown key" + (f": did you mean {close[0]}?" if close else "")
    if kind == "missing":
        return f"{webhook}: {name} is missing"
    return f"{webhook}: {name} {reason if isinstance(reason, ValueError) else _FIELDS[name]}"


def has_secret(value: object) -> bool:
    """Return whether the setting as written has a secret, or a URL with a user, a password or a query."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError:
            return True  # it is invalid; perhaps the secret is what makes it so
    if not isinstance(value, Sequence):
        return False
    return any(one.get("secret") or _has_credentials(str(one.get("url"))) for one in value if isinstance(one, Mapping))


def _has_credentials(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return bool(parts.username or parts.password or parts.query)


def json_text(value: Sequence[Any]) -> str:
    """Return a list from a YAML file as the JSON text of a variable."""
    return json.dumps(value)


def shown_webhooks(value: object) -> str:
    """Return validated webhooks for people: of a URL only scheme, host and port."""
    if not isinstance(value, tuple):
        return ""
    found = []
    for number, one in enumerate(value, 1):
        if isinstance(one, WebhookSetting):
            name = str(one.webhook(number)).partition("(")[2].removesuffix(")")
            found.append(f"{name}: {', '.join(one.webhook(number).kinds)}")
    return "; ".join(found)
