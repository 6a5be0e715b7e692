"""Weights in and out: text towers from Hugging Face folders."""
