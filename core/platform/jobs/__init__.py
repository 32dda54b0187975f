"""Fine-tuning jobs: their states, their resolved specification, and every change to their rows."""
