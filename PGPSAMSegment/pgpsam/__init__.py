"""pgpsam: prototype-guided, few-shot-tuned Segment Anything for organs in CT. The engine; it knows no Slicer."""

__version__ = "0.1.0"
