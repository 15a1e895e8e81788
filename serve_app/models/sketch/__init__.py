"""The embedded model: its scenes, its training recipe, its meter and its weights. Knows nothing of films or of Ray.

diffusers loads a component of a foreign class only when its module has been imported, so importing this package is what
makes `from_pretrained` on its checkpoint work.
"""

from serve_app.models.sketch.codec import SketchCodec

__all__ = ["SketchCodec"]
