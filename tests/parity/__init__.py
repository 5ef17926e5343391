"""Proves that scorers give what the implementations of their authors give, in environments that those still run in: `make parity`."""
