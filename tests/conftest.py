"""What holds for all tests."""

from __future__ import annotations

from hypothesis import settings

# A deadline measures the machine: whoever else uses it would fail a property that holds.
settings.register_profile("ditcast", deadline=None)
settings.load_profile("ditcast")
