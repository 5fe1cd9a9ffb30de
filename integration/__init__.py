"""Tests and demos against a real engine, a peer, a GPU or a network."""
