"""One file a question; each prints one JSON object last (contract: docs/70-architecture.md)."""
