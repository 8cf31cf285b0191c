"""Adapters as a transformation of the ledger: freeze the rows there are, add the adapter's (peft 0.21.2)."""
