"""Tensors on a GPU, hashed where they lie: blake3.cu, the plan of its launches, and what launches them over CuPy.

Nothing here is imported before the first tensor on a device is met, and CuPy not before its first launch.
"""
