"""How fast batch prediction is: against the bare runtime, bare Pillow, and timm's way."""
