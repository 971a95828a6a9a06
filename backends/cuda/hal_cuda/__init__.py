"""hal on NVIDIA GPUs."""
