"""Losses: pure functions on arrays, computed in float32."""
