"""A package, so that its conftest.py and that of tests/index are two modules."""
