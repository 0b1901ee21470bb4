"""The commit gates: what a response waits for."""
