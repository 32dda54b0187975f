"""What a finished run hands out: the bundle of adapter and head, and its model card."""
