"""The event buses on NATS: `bus.NatsBuses`. This module imports only the options; `bus` imports nats-py."""

from agent.adapters.nats.options import Limits, Login, NatsOptions, Patience, Tls

__all__ = ["Limits", "Login", "NatsOptions", "Patience", "Tls"]
