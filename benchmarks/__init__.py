"""The figures in README.md and docs/: how they were measured."""
