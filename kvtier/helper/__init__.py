"""The disk tier's work in a process of its own, over a host pool that both map: docs/adr/0004-transfer-threads.md."""
