"""Writes runs to disk, and reads them back."""
