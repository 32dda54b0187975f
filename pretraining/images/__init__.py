"""Generated training images: shapes, textures and scenes, drawn from a seed alone."""
