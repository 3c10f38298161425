"""What a receiver of webhooks got: each selected result at least once, in order, with one ID and a valid signature."""

import base64
import hashlib
import hmac
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Self

from agent.domain.events import ALREADY_DELIVERED, CHANGES_LOST, NO_CHANGE
from tests.support.servers import webhook_main
from tests.support.servers.kept_process import KeptProcess


@dataclass(frozen=True)
class Delivery:
    """A request that the receiver accepted: target, headers with names in lower case, and the body."""

    target: str
    headers: Mapping[str, str]
    body: str

    @property
    def event_id(self) -> str:
        return json.loads(self.body)["id"]

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    def is_signed(self, key: bytes) -> bool:
        """Return whether it has the signature that Standard Webhooks require."""
        signed = f"{self.webhook_id}.{self.headers['webhook-timestamp']}.{self.body}".encode()
        expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        return self.headers.get("webhook-signature") == f"v1,{expected}"


class ReceiverProcess(KeptProcess):
    """A receiver that keeps what it accepts in a file of `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(webhook_main, folder / "deliveries.jsonl")

    def deliveries(self, path: str) -> list[Delivery]:
        """Return what arrived at a path, in order."""
        lines = self._file.read_text().splitlines() if self._file.exists() else []
        return [one for one in (Delivery(**json.loads(line)) for line in lines) if one.target.partition("?")[0] == path]


@dataclass(frozen=True)
class Results:
    """The IDs of the results that a webhook gets, in the order of the history. `optional`: it may not get these."""

    ids: Sequence[str]
    optional: Collection[str] = ()

    @classmethod
    def of(cls, history: Sequence[Mapping[str, Any]], optional: Collection[str] = ()) -> Self:
        """Select the results that mean `succeeded` or `failed`, and the events about what is overdue."""
        kinds = (
            "akosha.sync.succeeded.v1", "akosha.sync.failed.v1", "akosha.archive.overdue.v1",
            "akosha.archive.recovered.v1",
        )  # fmt: skip

        def found_nothing_to_send(why: str) -> bool:
            return why.startswith((NO_CHANGE, ALREADY_DELIVERED)) and CHANGES_LOST not in why

        return cls(
            [
                event["id"]
                for event in history
                if event["type"] in kinds or found_nothing_to_send(event["data"].get("why", ""))
            ],
            optional,
        )

    def missing(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Return the results that have not arrived."""
        arrived = {one.event_id for one in deliveries}
        return [one for one in self.ids if one not in arrived and one not in self.optional]

    def violations(self, deliveries: Sequence[Delivery], key: bytes) -> Iterator[str]:
        """Yield what is wrong with deliveries, once all have arrived. Attempts to send a result follow one another.

        A slow connection may bring an attempt later, after the agent has closed it: the order is that of the attempts.
        """
        yield from (f"result {one} has not arrived at the webhook" for one in self.missing(deliveries))
        attempts = sorted(deliveries, key=lambda one: int(one.headers["webhook-timestamp"]))
        arrived = [event_id for event_id, _ in groupby(one.event_id for one in attempts)]
        first = [*dict.fromkeys(one.event_id for one in deliveries)]
        if not arrived == first == [one for one in self.ids if one in {*arrived}]:
            yield f"the webhook got results in another order or not selected ones: {arrived}"
        pairs = {(one.event_id, one.webhook_id) for one in deliveries}
        for number, what in ((0, "webhook-ids"), (1, "results")):
            if len({pair[number] for pair in pairs}) < len(pairs):
                yield f"one {('result', 'webhook-id')[number]} has several {what}"
        yield from (f"{one.webhook_id} has no valid signature" for one in deliveries if not one.is_signed(key))
