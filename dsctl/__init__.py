"""Conversion, quantization and inspection of the weights of the DeepSeek family."""

__version__ = "0.1.0"
__all__ = ["__version__"]
