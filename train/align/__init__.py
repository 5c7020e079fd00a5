"""Preference alignment: `python -m train.align`."""
