"""What a student's forward pass amounts to: the floor under every time in the table.

A product of (a, b) and (b, c) is 2abc operations; norms, softmax and GELU are left out.

Legend: `N` tokens (CLS, DIST, patches), `D` width, `S` image side, `P` patch side, `C` classes.
"""

from deitlt.student import SIZES, StudentConfig

# Rows of the last block that anyone reads: CLS and DIST.
LAST_ROWS = 2


def plain_flops(config: StudentConfig) -> int:
    """Operations of one image through the model as it was trained."""
    width, depth, _ = SIZES[config.size]
    tokens = _num_tokens(config)
    heads = 2 * 2 * width * config.num_classes
    return _embedding(config) + depth * _block(tokens, tokens, width) + heads


def pruned_flops(config: StudentConfig) -> int:
    """Operations of one image through `export.fuse.FusedStudent`.

    The last block has two query rows. The average is a product of its own, `2 D` by `C`, beside
    both experts.
    """
    width, depth, _ = SIZES[config.size]
    tokens = _num_tokens(config)
    blocks = (depth - 1) * _block(tokens, tokens, width) + _block(tokens, LAST_ROWS, width)
    heads = 2 * 2 * (2 * width) * config.num_classes
    return _embedding(config) + blocks + heads


def _num_tokens(config: StudentConfig) -> int:
    return (config.img_size // config.patch_size) ** 2 + 2


def _embedding(config: StudentConfig) -> int:
    width = SIZES[config.size][0]
    return 2 * (_num_tokens(config) - 2) * 3 * config.patch_size**2 * width


def _block(tokens: int, rows: int, width: int) -> int:
    """A block that answers for `rows` of its `tokens`; for all of them, 24 N D^2 + 4 N^2 D."""
    keys_and_values = 2 * tokens * width * 2 * width
    # Queries and projection are D by D, the two layers of the MLP D by 4 D.
    per_row = 2 * rows * (1 + 1 + 4 + 4) * width**2
    attention = 2 * 2 * rows * tokens * width
    return keys_and_values + per_row + attention
