"""The Akosha side: uploads of all systems into Akosha."""
