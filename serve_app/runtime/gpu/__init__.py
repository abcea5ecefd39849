"""Engines on a GPU: one thread that owns the device, and what it needs of a device. Imports no GPU package."""
