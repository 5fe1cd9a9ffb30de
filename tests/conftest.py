"""For all tests: how properties are tried."""

from hypothesis import settings

# How long an example takes is the machine's matter, and other programs'. A test that hangs meets pytest's own limit.
settings.register_profile("kvtier", deadline=None)
settings.load_profile("kvtier")
