"""medclip_jax: vision-language pretraining on 3D medical volumes, in JAX."""

