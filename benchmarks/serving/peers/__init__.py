"""What this service is compared with, each as its users would write it, on the same files."""
