"""Slicer's side of PGPSAMSegment: it runs in Slicer's own Python and installs nothing into it.

Only the standard library, numpy, vtk, slicer, qt and ctk may be imported here, never torch and never `pgpsam`:
the engine is another process, and the two meet only at the worker's protocol (JSON lines and .npy files).
"""
