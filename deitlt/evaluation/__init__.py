"""How good a bundle is on labelled images: figures, tables and pictures, written as one folder."""
