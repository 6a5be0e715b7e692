"""medclip_jax: vision-language pretraining on 3D medical volumes, in JAX.

import medclip_jax

model = medclip_jax.load("runs/clip")
model.zero_shot("scan.nii.gz", ["cardiomegaly", "pericardial_effusion"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medclip_jax.inference.load import load
    from medclip_jax.inference.model import Model

__all__ = ["Model", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import on first use (PEP 562), so that `import medclip_jax` costs nothing."""
    if name == "__version__":
        from importlib.metadata import version

        return version("medclip-jax")
    if name == "load":
        from medclip_jax.inference.load import load

        return load
    if name == "Model":
        from medclip_jax.inference.model import Model

        return Model
    raise AttributeError(f"module 'medclip_jax' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
