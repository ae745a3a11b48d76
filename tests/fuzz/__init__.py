"""A mutation fuzzer of everything that comes in from outside: python -m tests.fuzz --seconds 300."""
