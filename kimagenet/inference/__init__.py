"""Trained models in use: loading, evaluation, export."""
