"""Memory that others measured on GPUs and published, held against the ledger and the tracer.

A published figure is no record: what was measured is known only as far as its source tells. Nothing is tuned on it.
"""
