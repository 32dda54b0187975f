"""The main job end to end on real images, driven over HTTP as any client would."""
