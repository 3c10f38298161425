"""Gets every memory that Session-Buddy commits safely to Akosha."""

__version__ = "0.1.0"
