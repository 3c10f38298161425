"""The event bus on NATS JetStream: `bus.NatsBus`. What is here is light; the client is loaded where `bus` is."""

from agent.adapters.nats.options import Limits, Login, NatsOptions, Patience, Tls

__all__ = ["Limits", "Login", "NatsOptions", "Patience", "Tls"]
