"""The Akosha side: uploads of all systems into Akosha.

service           all systems: `IngestService` starts a system's ingest at a result or a rescan
system_ingester   the uploads of one system, in order
upload_ingester   one upload: its memories.json or its databases
cursor            which uploads Akosha has
turns             shares of time, so that one large upload does not delay other systems
journal           the events about ingested uploads
"""
