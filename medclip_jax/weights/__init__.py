"""Published weights in: text encoders, 2D and 3D vision checkpoints, released systems."""
