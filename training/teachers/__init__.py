"""CNN teachers: networks, what they learn by, SAM, and how they answer for a student."""
