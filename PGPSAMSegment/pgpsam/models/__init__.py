"""What the engine keeps on disk: `weights`, the backbones' base weights, and `store`, the model folders."""
