"""Nested containers as named arrays and one document: what every adapter saves, and how it comes back."""
