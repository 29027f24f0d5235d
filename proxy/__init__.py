"""magic-proxy: a caching reverse proxy that speaks the OpenAI API."""

__version__ = "0.1.0"
