"""One file a question; each prints one JSON object last (contract: docs/08-architecture.md)."""
