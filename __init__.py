"""vertebra: hierarchical vision backbones for timm, mmdetection and mmsegmentation.

Importing it registers the backbones with timm, and nothing else:

    import timm, vertebra

    model = timm.create_model("van_b0", features_only=True)

`fuse_attention(model)` puts a DaViT, MaxViT or SHViT that timm has built on the operators of `vertebra.kernels`.
"""

if __name__ == "vertebra":  # pytest imports this file a second time, by the name of the clone's folder
    from importlib.metadata import PackageNotFoundError, version

    from . import backbones
    from .backbones import fuse_attention

    try:
        __version__ = version("vertebra")
    except PackageNotFoundError:  # a checkout put on the path without being installed
        __version__ = "0+unknown"

    __all__ = ["__version__", "backbones", "fuse_attention"]
