"""The figures that README.md claims: how they were measured."""
