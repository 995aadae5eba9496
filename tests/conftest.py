"""The fixtures are in shared/testing.py: exercises and copies outside this directory need them."""
