"""Faults, injected into real worker processes and a real server."""
