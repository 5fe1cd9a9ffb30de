"""vLLM adapter: an OffloadingConnector with our own spec and manager on top of kvtier's cache."""
