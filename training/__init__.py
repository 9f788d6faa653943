"""From labelled images to a teacher, from a teacher to a DeiT-LT student."""
